"""Processes that train one adapter together do what one process does, and a run may change their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdlora.config import files
from sdlora.events import Notice, StepFinished, Validated
from sdlora.runs.event_log import iterate_events
from sdlora.training.loop.run import resume, train


def steps_and_losses(run: Path) -> list[tuple[int, float]]:
    return [
        (event.step, event.loss if isinstance(event, StepFinished) else event.relative_loss)
        for event in iterate_events(run / "events.jsonl")
        if isinstance(event, (StepFinished, Validated))
    ]


def test_two_processes_follow_the_curve_of_one_which_goes_on_with_their_run(
    tiny_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    settings = {
        "base_model.model": tiny_sd1,
        "images.folder": tiny_images,
        "images.resolution": 64,
        "images.buckets": "false",
        "images.horizontal_flip": "true",
        "images.cache_folder": tmp_path / "cache",
        "captions.tag_dropout": 0.3,
        "adapter.rank": 2,
        "optimization.steps": 3,
        "optimization.batch_size": 3,  # one image for the first process, two for the second
        "optimization.precision": "fp32",
        "optimization.optimizer": "torch.optim.SGD",
        "optimization.learning_rate": "0.1",
        "optimization.threads": 1,
        "optimization.device": "cpu",
        "validation.fraction": 0.2,
        "outputs.checkpoint_every": 1,
        "outputs.keep_checkpoints": 9,
        "outputs.precision": "fp32",
        "outputs.self_test": "false",
    }

    def overrides(folder: str) -> list[str]:
        return [f"{name}={value}" for name, value in {**settings, "outputs.folder": tmp_path / folder}.items()]

    alone = train(files.load(overrides=overrides("alone"))).adapter
    arguments = [part for override in overrides("together") for part in ("--set", override)]
    command = [sys.executable, "-m", "sdlora", "train", "--processes", "2", *arguments]
    ended = subprocess.run(command, check=False, timeout=300, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (together,) = (tmp_path / "together").iterdir()

    notices = [event.message for event in iterate_events(together / "events.jsonl") if isinstance(event, Notice)]
    assert any("3 images a step (batch 3 x accumulation 1), 1 or 2 for each of 2 processes" in one for one in notices)
    assert steps_and_losses(together) == [
        (step, pytest.approx(loss, rel=1e-5)) for step, loss in steps_and_losses(alone.parent)
    ]
    assert_same(together / "my-lora.safetensors", alone)

    (together / "my-lora.safetensors").unlink()
    for step in (2, 3):
        (together / "checkpoints" / f"step_{step:06d}").rename(tmp_path / f"gone-{step}")
    assert resume(together).outcome == "completed"
    assert_same(together / "my-lora.safetensors", alone)


def assert_same(adapter: Path, expected: Path) -> None:
    found, wanted = load_file(adapter), load_file(expected)
    # Sums in another order differ in their last digits, which values that are small by cancellation feel most: so B is
    # measured by the largest value in any B, as one update is by another.
    largest = max(float(tensor.abs().max()) for name, tensor in wanted.items() if "lora_up" in name)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4 * largest, msg=name)
