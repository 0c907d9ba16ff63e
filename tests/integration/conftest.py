"""What the tests of trainings share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.config.train import TrainConfig


@pytest.fixture
def configure(shallow_sd1: Path, tiny_images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def with_overrides(*overrides: str) -> TrainConfig:
        settings = {
            "base_model.model": shallow_sd1,
            "images.folder": tiny_images,
            "images.resolution": 64,
            "images.bucket_step": 32,
            "adapter.rank": 2,
            "optimization.steps": 3,
            "optimization.precision": "fp32",
            "optimization.learning_rate": "1e-3",
            "outputs.folder": tmp_path / "runs",
            "outputs.self_test": "false",
        }
        return files.load(overrides=[*(f"{name}={value}" for name, value in settings.items()), *overrides])

    return with_overrides
