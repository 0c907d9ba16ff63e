"""Prompts that change by step and prompts joined by AND, in real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.generation.generate import GeneratedImage, Generator
from sdlora.generation.sampling.denoising import combine, guided
from tests.support.emoji_adapters import random_adapter

SETTINGS: dict[str, Any] = {
    "width_px": 64,
    "height_px": 64,
    "steps": 4,
    "guidance": 4.0,
    "seed": 11,
    "sampler": "Euler",
    "compute": {"precision": "fp32", "device": "cpu"},
}
CAT, DOG = "a cat face, noto style emoji", "a red car, twemoji style emoji"


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = GenerateConfig(**SETTINGS)
    return Generator(config.base_model, config.compute)


def images(generator: Generator, *prompts: str, **settings: Any) -> list[GeneratedImage]:
    return list(generator.generate_rows([GenerateConfig(**{**SETTINGS, **settings}, prompt=one) for one in prompts]))


def difference(one: GeneratedImage, other: GeneratedImage) -> int:
    values = (numpy.asarray(each.image).astype(int) for each in (one, other))
    first, second = values
    return int(abs(first - second).max())


def test_a_change_at_no_step_is_the_other_prompt_byte_for_byte(generator: Generator) -> None:
    for written, plain in ((f"[{DOG}:{CAT}:0.0]", CAT), (f"[{CAT}:{DOG}:4]", CAT), (f"[{CAT}|{CAT}]", CAT)):
        assert difference(*images(generator, written), *images(generator, plain)) == 0


def test_a_change_halfway_is_neither_prompt_alone(generator: Generator) -> None:
    changed, cat, dog = images(generator, f"[{CAT}:{DOG}:0.5]", CAT, DOG)
    assert min(difference(changed, cat), difference(changed, dog)) > 10


def test_negative_prompts_change_too(generator: Generator) -> None:
    changed, plain = (images(generator, CAT, negative=text)[0] for text in (f"[{DOG}:0.5]", ""))
    assert difference(changed, plain) > 0


def test_a_prompt_with_weight_nothing_adds_nothing(generator: Generator) -> None:
    joined, alone = images(generator, f"{CAT} AND {DOG} :0")[0], images(generator, CAT)[0]
    assert difference(joined, alone) <= 1


def test_prompts_are_combined_as_in_composable_diffusion(generator: Generator) -> None:
    joined, cat, dog = (images(generator, text)[0] for text in (f"{CAT} AND {DOG} :0.8", CAT, DOG))
    assert min(difference(joined, cat), difference(joined, dog)) > 10

    first, second, nothing = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    weights = torch.tensor([[1.0, 1.0], [0.8, 0.3]])
    guidance, rescale = torch.tensor([7.0, 3.0]), torch.zeros(2)
    got = guided(combine([first, second], nothing, weights), nothing, guidance, rescale)
    for row, scale in enumerate((7.0, 3.0)):
        parts = weights[0, row] * (first - nothing)[row] + weights[1, row] * (second - nothing)[row]
        assert torch.allclose(got[row], nothing[row] + scale * parts, atol=1e-5)


def test_an_image_is_the_same_alone_and_beside_others_with_schedules(generator: Generator) -> None:
    prompts = [f"[{CAT}:{DOG}:0.5]", f"[{CAT}|{DOG}]", CAT, f"{CAT} AND {DOG}"]
    together = images(generator, *prompts)
    for prompt, image in zip(prompts, together, strict=True):
        assert difference(image, *images(generator, prompt)) == 0


def test_what_is_only_words_is_said_with_the_image(generator: Generator) -> None:
    (image,) = images(generator, f"{CAT} {{shiny}}")
    assert any("braces without | are words here" in warning for warning in image.warnings)


def test_adapters_count_at_every_step_with_and_without_schedules(generator: Generator, tmp_path: Path) -> None:
    file = random_adapter(tmp_path / "strong.safetensors", strength=0.5)
    adapters = (UsedAdapter(file=str(file)),)
    apart = {**SETTINGS["compute"], "merge_adapters": False}
    plain, scheduled, without = (
        images(generator, CAT, adapters=adapters, compute=apart)[0],
        images(generator, f"[{CAT}:{CAT}:2]", adapters=adapters, compute=apart)[0],
        images(generator, CAT, compute=apart)[0],
    )
    merged = images(generator, CAT, adapters=adapters, compute={**apart, "merge_adapters": True})[0]
    assert difference(plain, merged) <= 3
    assert difference(scheduled, plain) == 0
    assert difference(plain, without) > 10
