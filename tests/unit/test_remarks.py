"""What a run says of settings that are more likely forgotten than meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.training.inputs.images import find_images
from sdlora.training.preflight.remarks import remarks
from tests.support.emoji_adapters import random_adapter


def advice(*overrides: str) -> list[str]:
    config = files.load("demo.yaml", overrides)
    return [text for label, text in remarks(config, find_images(config)) if label == "advice"]


def test_an_adapter_of_a_base_that_predicts_something_else_is_said(tmp_path: Path) -> None:
    flow = random_adapter(tmp_path / "flow.safetensors", **{"modelspec.prediction_type": "flow"})
    (said,) = advice(f"adapter.start_from={flow}")
    assert "was trained on a base model that predicts flow, and this one predicts epsilon" in said
    assert advice(f"adapter.start_from={random_adapter(tmp_path / 'plain.safetensors')}") == []


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
        (["captions.trigger=zibbo"], "none of them holds the trigger 'zibbo'"),
        (
            ["optimization.learning_rate=1e-4", "optimization.steps=80"],
            "at a learning rate of 0.0001 so few steps change little; some 200 and more, or a higher rate",
        ),
    ],
)
def test_what_is_more_likely_forgotten_than_meant_is_said(tiny_images: Path, overrides: list[str], words: str) -> None:
    (found,) = advice(*(text.format(own=tiny_images) for text in overrides))
    assert words in found
