"""What a run leaves behind: the adapter file, checkpoints, previews, validation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sdlora.config.base_model import Precision
from sdlora.config.section import Section
from sdlora.constants import LATENT_FACTOR


class ValidationConfig(Section):
    folder: Path | None = None
    """Folder with held-out images; overrules fraction."""

    fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training images held out, at least one when above 0."""

    every: int = Field(default=100, ge=1)
    """Steps between validations; step 0 and the last are always measured."""

    timesteps: tuple[int, ...] = (100, 300, 500, 700, 900)
    """Fixed timesteps at which the loss is measured, each with fixed noise."""


class PreviewsConfig(Section):
    prompts: tuple[str, ...] = ()
    """Prompts generated with fixed seeds before training and every so often."""

    negative: str = ""
    """Negative prompt."""

    every: int = Field(default=0, ge=0)
    """Steps between previews; 0 generates before the first and after the last step only."""

    steps: int = Field(default=25, ge=1, le=200)
    """Sampling steps."""

    guidance: float = Field(default=7.0, ge=0, le=30)
    """Classifier-free guidance scale."""

    width_px: int | None = Field(default=None, ge=64, multiple_of=LATENT_FACTOR)
    """Width; by default the first training resolution."""

    height_px: int | None = Field(default=None, ge=64, multiple_of=LATENT_FACTOR)
    """Height; by default the first training resolution."""

    seed: int = Field(default=0, ge=0)
    """Seed of the first prompt; the others count up."""


class OutputsConfig(Section):
    folder: Path = Path("runs")
    """Folder that holds one folder a run."""

    format: Literal["kohya", "diffusers"] = "kohya"
    """Key names of the adapter file; kohya loads in every tool, diffusers in diffusers."""

    precision: Precision = "fp16"
    """Number type of the adapter file."""

    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 keeps one at the end only."""

    keep_checkpoints: int = Field(default=3, ge=1)
    """Newest checkpoints kept; the best by validation is kept besides."""

    metadata: Literal["full", "private"] = "full"
    """private leaves folders and captions out of the file's metadata."""

    author: str = ""
    """Author named in the file's metadata."""

    description: str = ""
    """Description in the file's metadata and side-car."""

    self_test: bool = True
    """Load the finished file into a fresh pipeline and compare it with the trained model."""

    tensorboard: bool = False
    """Write TensorBoard logs into the run folder."""
