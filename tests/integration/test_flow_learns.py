"""An adapter on a rectified flow that knows something: it lowers the loss on images that it has not seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.config.base_model import BaseModelConfig
from sdlora.models.loading import load
from sdlora.training.loop.run import train
from tests.support.tiny_flow import train_flow_base

BASE_STEPS, STEPS = 120, 40


@pytest.mark.slow
def test_an_adapter_lowers_the_held_out_loss_of_a_flow_and_the_flow_is_recognised_unmarked(tmp_path: Path) -> None:
    base = tmp_path / "base"
    losses = train_flow_base(base, "builtin:blueprint", steps=BASE_STEPS)
    before, after = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    settings = {
        "base_model.model": base,
        "images.folder": "builtin:mascot",
        "images.resolution": 64,
        "images.bucket_step": 32,
        "images.cache": "false",
        "adapter.rank": 8,
        "adapter.layers": "all",
        "objective.timestep_distribution": "logit_normal",
        "optimization.steps": STEPS,
        "optimization.batch_size": 4,
        "optimization.learning_rate": 2e-3,
        "optimization.precision": "fp32",
        "outputs.folder": tmp_path,
        "outputs.self_test": "false",
        "validation.fraction": 0.3,
        "name": "ink",
    }
    result = train(files.load(overrides=[f"{name}={value}" for name, value in settings.items()]))
    print(f"base {before:.3f} to {after:.3f} in {BASE_STEPS} steps; adapter {result.relative_loss:.3f} in {STEPS}")
    assert after < 0.4 * before
    assert result.relative_loss is not None
    assert result.relative_loss < 0.9

    shutil.rmtree(base / "scheduler")
    bundle = load(BaseModelConfig(model=str(base), precision="fp32"))
    assert bundle.schedule.prediction == "flow"
    assert "epsilon is likely, but two calls of the UNet show flow: taken as flow" in bundle.notes[-1]
