"""What generating gives: images with all that is known of them, and previews on the way. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdlora.config.base_model import FamilyName, Prediction
from sdlora.config.generate import GenerateConfig


@dataclass(frozen=True)
class StepPreview:
    """A finished step. `images()` makes small pictures of the batch as it stands; it costs little, but not nothing."""

    step: int
    total_steps: int
    image_index: int
    """The first image of the batch, counted from 0."""
    num_images: int
    images: Callable[[], list[Image.Image]]


@dataclass(frozen=True)
class GenerationFacts:
    """What an image was generated with, beside its request: names and hashes of its files, the model's kind, time."""

    model_name: str
    model_hash: str | None
    """First 10 letters of the base model file's sha256, for a model that is one file."""
    adapter_hashes: dict[str, str]
    """By file name without suffix: the first 12 letters of the hash of its tensors (AutoV3)."""
    family: FamilyName
    prediction: Prediction
    seconds: float


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image. `config` repeats this one image: seed and sizes are filled in, adapter tags resolved."""

    image: Image.Image
    config: GenerateConfig
    facts: GenerationFacts
    warnings: tuple[str, ...] = ()
    path: Path | None = None
