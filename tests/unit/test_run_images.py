"""The images of a run, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.errors import DataError
from sdlora.training.inputs.images import find_images


def test_images_that_are_all_held_out_are_refused(tiny_images: Path) -> None:
    overrides = [f"images.folder={tiny_images}", f"validation.folder={tiny_images}", "images.resolution=64"]
    with pytest.raises(DataError, match="all 10 training images are held out too"):
        find_images(files.load(None, overrides))


def test_missing_class_images_come_with_the_command_that_draws_them(tiny_images: Path, tmp_path: Path) -> None:
    settings = [f"images.folder={tiny_images}", "images.resolution=64", "objective.prior_preservation=class_images"]
    config = files.load(None, [*settings, f"images.class_folder={tmp_path / 'gone'}"])
    with pytest.raises(DataError, match=r"gone does not exist.* sdlora dataset class-images --out .*gone --prompt"):
        find_images(config)
    config = files.load(None, [*settings, f"images.class_folder={tmp_path}"])
    with pytest.raises(DataError, match="is empty. Generate its images"):
        find_images(config)
