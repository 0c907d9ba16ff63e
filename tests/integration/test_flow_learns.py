"""An adapter on a rectified flow that knows something: it lowers the loss on images that neither has seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.shipped import sample_images_folder
from sdlora.models.loading import load
from sdlora.training.loop.run import train
from tests.support.tiny_flow import train_flow_base

BASE_STEPS, STEPS = 50, 20
KNOWN = 3
"""Of the mascot's pictures: with them the base knows colours and strokes like those of the others."""


@pytest.mark.slow
def test_an_adapter_lowers_the_held_out_loss_of_a_flow_and_the_flow_is_recognised_unmarked(tmp_path: Path) -> None:
    known, new, base = (tmp_path / name for name in ("known", "new", "base"))
    for number, picture in enumerate(sorted((sample_images_folder() / "mascot").glob("*.png"))):
        folder = known if number < KNOWN else new
        folder.mkdir(exist_ok=True)
        for file in (picture, picture.with_suffix(".txt")):
            shutil.copy(file, folder)
    losses = train_flow_base(base, ["builtin:blueprint", known], steps=BASE_STEPS)
    before, after = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    settings = {
        "base_model.model": base,
        "images.folder": new,
        "images.resolution": 64,
        "images.bucket_step": 32,
        "images.cache": "false",
        "adapter.rank": 16,
        "adapter.layers": "all+conv",
        "objective.timestep_distribution": "logit_normal",
        "optimization.steps": STEPS,
        "optimization.batch_size": 4,
        "optimization.learning_rate": 4e-3,
        "optimization.precision": "fp32",
        "outputs.folder": tmp_path,
        "outputs.self_test": "false",
        "validation.fraction": 0.3,
        "name": "ink",
    }
    result = train(files.load(overrides=[f"{name}={value}" for name, value in settings.items()]))
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [event["loss"] for event in events if event["kind"] == "validated"]
    print(f"base: {before:.3f} to {after:.3f} in {BASE_STEPS} steps; adapter: held out {held_out} in {STEPS}")
    assert after < 0.4 * before
    assert result.relative_loss is not None
    assert result.relative_loss < 0.9

    shutil.rmtree(base / "scheduler")
    bundle = load(BaseModelConfig(model=str(base), precision="fp32"))
    assert bundle.schedule.prediction == "flow"
    assert "epsilon is likely, but two calls of the UNet show flow: taken as flow" in bundle.notes[-1]
