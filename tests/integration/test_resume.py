"""A run that is killed and resumed gives the same adapter as one that is not, to the last byte."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sdlora.config import files
from sdlora.errors import ConfigError, RunError
from sdlora.events import CheckpointSaved, Event, parse_event
from sdlora.runs.checkpoints import newest
from sdlora.runs.folder import RunFolder
from sdlora.training.loop.run import resume, train

STEPS, HALF = 4, 2


def settings(model: Path, images: Path, runs: Path, precision: str, optimizer: str) -> list[str]:
    """Everything random switched on, over a tiny model of SD 1.5's topology."""
    return [
        f"base_model.model={model}",
        f"images.folder={images}",
        "images.resolution=64",
        "images.bucket_step=16",
        "images.random_crop=true",
        "images.horizontal_flip=true",
        "captions.shuffle_tags=true",
        "captions.tag_dropout=0.2",
        "captions.dropout=0.2",
        "adapter.rank=4",
        "adapter.layers=all+conv",
        "adapter.text_encoder=true",
        "adapter.dropout=0.1",
        f"optimization.steps={STEPS}",
        "optimization.batch_size=2",
        "optimization.accumulation=2",
        f"optimization.precision={precision}",
        f"optimization.optimizer={optimizer}",
        "optimization.learning_rate=1e-3",
        "optimization.ema=0.9",
        "optimization.threads=1",
        "validation.fraction=0.2",
        "validation.every=2",
        f"outputs.folder={runs}",
        f"outputs.checkpoint_every={HALF}",
        "outputs.self_test=false",
    ]


def weights_hash(adapter: Path) -> str:
    """sha256 over names and bytes of all tensors (the metadata holds times)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(adapter).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def kill_after_checkpoint(overrides: list[str], events: Path) -> None:
    """Start a run in its own process and `kill -9` it as soon as its first checkpoint is written."""
    arguments = [part for override in overrides for part in ("--set", override)]
    process = subprocess.Popen([sys.executable, "-m", "sdlora", "train", *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None:
        lines = events.read_text(encoding="utf-8").splitlines(keepends=True) if events.exists() else []
        if any(isinstance(parse_event(line), CheckpointSaved) for line in lines if line.endswith("\n")):
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.02)
    assert process.returncode == -signal.SIGKILL


class CutAtCheckpoint:
    """Copies a run's folder as it tells of its first checkpoint: what a kill at that moment leaves behind.

    For what a run's state must hold; that a killed process leaves it so is shown with `kill -9`.
    """

    def __init__(self, run: Path, copy: Path) -> None:
        self._run, self._copy = run, copy

    def emit(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved) and not self._copy.exists():
            shutil.copytree(self._run, self._copy)
            (self._copy / "process.json").unlink()  # it is that of this process, which lives

    def close(self) -> None:
        pass


def goes_on(run: Path, expected: str) -> None:
    """Resume a run that was cut off half-way, which then gives the expected bytes."""
    checkpoint = newest(RunFolder(run))
    assert checkpoint is not None
    assert checkpoint.step < STEPS
    assert not (run / "my-lora.safetensors").exists()
    actual = weights_hash(resume(run).adapter)
    print(f"straight {expected}, cut off and resumed {actual}")
    assert actual == expected


def test_kill_and_resume_gives_the_same_bytes_as_an_uninterrupted_run(
    shallow_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    straight = settings(shallow_sd1, tiny_images, tmp_path / "straight", "fp32", "adamw")
    killed = settings(shallow_sd1, tiny_images, tmp_path / "killed", "fp32", "adamw")
    expected = weights_hash(train(files.load(overrides=straight)).adapter)

    run = tmp_path / "killed" / "my-lora"
    kill_after_checkpoint(killed, run / "events.jsonl")
    goes_on(run, expected)


def test_bf16_and_8_bit_optimizers_go_on_to_the_same_bytes(
    shallow_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = files.load(overrides=settings(shallow_sd1, tiny_images, tmp_path / "straight", "bf16", "adamw8bit"))
    run = tmp_path / "cut" / "my-lora"
    straight = train(config, [CutAtCheckpoint(tmp_path / "straight" / "my-lora", run)])
    goes_on(run, weights_hash(straight.adapter))


def test_resuming_a_complete_run_says_so(shallow_sd1: Path, tiny_images: Path, tmp_path: Path) -> None:
    overrides = [*settings(shallow_sd1, tiny_images, tmp_path, "fp32", "adamw"), "optimization.steps=1"]
    run = train(files.load(overrides=overrides)).folder
    with pytest.raises(RunError, match="this run is complete: all 1 steps are done"):
        resume(run)


def test_resuming_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder: it has no config.yaml"):
        resume(tmp_path)
