"""What a run says of settings that are more likely forgotten than meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.training.inputs.images import find_images
from sdlora.training.preflight.remarks import remarks


def advice(*overrides: str) -> list[str]:
    config = files.load("demo.yaml", overrides)
    return [text for label, text in remarks(config, find_images(config)) if label == "advice"]


def test_the_demo_is_as_it_is_meant() -> None:
    assert advice() == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["images.folder={own}"], "builtin:emoji is a tiny model of icons"),
        (["images.resolution=512"], "images.resolution=512: this base model was trained at 128 px"),
        (["optimization.steps=3000"], "epochs: each image is seen that often"),
        (
            [
                *("optimization.optimizer=prodigy", "optimization.learning_rate=1", "optimization.steps=60"),
                "optimization.text_encoder_learning_rate=null",
            ],
            "a run of 60 steps ends too early, 200 and more suit it",
        ),
        (
            ["optimization.optimizer=schedule_free_adamw", "optimization.schedule=constant", "optimization.steps=60"],
            "lags behind in a run of 60 steps",
        ),
        (
            ["optimization.learning_rate=1e-4", "optimization.steps=80"],
            "at a learning rate of 0.0001 so few steps change little; some 200 and more, or a higher rate",
        ),
    ],
)
def test_what_is_more_likely_forgotten_than_meant_is_said(tiny_images: Path, overrides: list[str], words: str) -> None:
    (found,) = advice(*(text.format(own=tiny_images) for text in overrides))
    assert words in found
