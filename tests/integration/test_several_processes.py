"""Two processes train one adapter together, and the result is that of one process with twice the accumulation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sdlora.config import files
from sdlora.training.loop.run import train


def test_two_processes_equal_one_with_twice_the_accumulation(tiny_sd1: Path, tiny_images: Path, tmp_path: Path) -> None:
    settings = {
        "base_model.model": tiny_sd1,
        "images.folder": tiny_images,
        "images.resolution": 64,
        "images.buckets": "false",
        "adapter.rank": 2,
        "optimization.steps": 2,
        "optimization.precision": "fp32",
        "optimization.optimizer": "torch.optim.SGD",
        "optimization.learning_rate": "1.0",
        "optimization.threads": 1,
        "optimization.device": "cpu",
        "validation.fraction": 0.1,
        "outputs.checkpoint_every": 1,
        "outputs.precision": "fp32",
        "outputs.self_test": "false",
    }

    def overrides(folder: str, accumulation: int) -> list[str]:
        own = {"outputs.folder": tmp_path / folder, "optimization.accumulation": accumulation}
        return [f"{name}={value}" for name, value in {**settings, **own}.items()]

    alone = train(files.load(overrides=overrides("alone", 2))).adapter
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "sdlora",
        "train",
    ]
    arguments = [part for override in overrides("together", 1) for part in ("--set", override)]
    subprocess.run([*launch, *arguments], check=True, timeout=300, stderr=subprocess.DEVNULL)
    assert len(list((tmp_path / "together").iterdir())) == 1
    together = load_file(tmp_path / "together" / "my-lora" / "my-lora.safetensors")
    for name, tensor in load_file(alone).items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
