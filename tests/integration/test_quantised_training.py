"""A frozen base in 4 or 8 bits: how much smaller it is, and that training on it gets as far."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.config.base_model import BaseModelConfig, Quantization
from sdlora.events import Validated, parse_event
from sdlora.models.loading import load
from sdlora.models.quantize import weight_bytes
from sdlora.training.loop.run import train
from sdlora.training.loop.running import RunResult

SHARE_OF_FP16: dict[Quantization, float] = {"int8": 0.55, "nf4": 0.32, "nf4-double": 0.32}
STEPS = 30


def train_on(quantization: Quantization, folder: Path) -> RunResult:
    settings = {
        "base_model.quantization": quantization,
        "images.folder": "builtin:blueprint",
        "images.resolution": 64,
        "adapter.rank": 8,
        "optimization.steps": STEPS,
        "optimization.batch_size": 1,
        "optimization.learning_rate": "2e-3",
        "optimization.precision": "fp32",
        "validation.fraction": 0.1,
        "validation.every": STEPS,
        "outputs.self_test": "false",
        "outputs.folder": folder,
    }
    return train(files.load(overrides=[f"{name}={value}" for name, value in settings.items()]))


@pytest.mark.parametrize("quantization", SHARE_OF_FP16)
def test_quantised_weights_take_a_fraction_of_fp16(quantization: Quantization) -> None:
    plain = load(BaseModelConfig(precision="fp16")).unet
    packed = load(BaseModelConfig(precision="fp16", quantization=quantization)).unet
    share = weight_bytes(packed) / weight_bytes(plain)
    print(f"{quantization}: {weight_bytes(packed):,} of {weight_bytes(plain):,} bytes, {share:.1%}")
    assert share <= SHARE_OF_FP16[quantization]


def losses(result: RunResult) -> list[float]:
    """Validation losses before the first and after the last step."""
    lines = (result.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event.loss for event in map(parse_event, lines) if isinstance(event, Validated)]


@pytest.fixture(scope="module")
def unquantised_loss(tmp_path_factory: pytest.TempPathFactory) -> float:
    before, after = losses(train_on("none", tmp_path_factory.mktemp("none")))
    assert after < 0.6 * before, "a run that learns next to nothing compares nothing"
    return after


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_training_on_a_quantised_base_gets_as_far(
    unquantised_loss: float, quantization: Quantization, tmp_path: Path
) -> None:
    loss = losses(train_on(quantization, tmp_path))[-1]
    print(f"{quantization}: validation loss {loss:.5f}, unquantised {unquantised_loss:.5f}")
    assert loss <= 1.05 * unquantised_loss
