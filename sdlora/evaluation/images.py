"""The images of an evaluation: generated once, kept with their requests, found again by what they were asked for.

`RUN/evaluation/images/step_000500/a-red-car-seed0-1a2b3c4d5e6f.png`: the last part is a hash of everything that the
image hangs on (the request, the adapter's tensors, the base model), so an evaluation that was interrupted generates
only what is missing, and one with other settings generates its own beside them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.config.train import TrainConfig
from sdlora.data.decoding import UnreadableImageError, load_rgb
from sdlora.evaluation.plan import EvaluatedCheckpoint, EvaluatedPrompt
from sdlora.generation.generate import Generator
from sdlora.generation.restore.image_files import save_image
from sdlora.runs.folder import RunFolder, step_name

BASE = "base"
"""Folder of the images without an adapter."""
_NAME_LETTERS = 48
_FORMAT = 1
"""Part of every hash: a change of how images are made begins afresh."""
# What can't change a picture: where it goes, and how many are generated at once.
_NOT_HASHED = {"files", "batch_size", "num_images", "adapters", "base_model", "adapter_folders", "embedding_folders"}


@dataclass(frozen=True)
class PlannedImage:
    """One image of the evaluation. `checkpoint` is None for the base model's."""

    checkpoint: EvaluatedCheckpoint | None
    prompt: EvaluatedPrompt
    seed: int
    request: GenerateConfig
    path: Path

    @property
    def text(self) -> str:
        """What is generated: the base is asked without the trigger, which it doesn't know."""
        return self.request.prompt

    def load(self) -> Image.Image:
        """The picture. Raises UnreadableImageError."""
        return load_rgb(self.path, "#ffffff")

    @property
    def is_there(self) -> bool:
        """Whether it was generated and can be read: files are written whole, so only a disk's fault says no."""
        if not self.path.is_file():
            return False
        try:
            self.load()
        except UnreadableImageError:
            self.path.unlink(missing_ok=True)  # generated anew, by the same request
            return False
        return True


def plan_images(
    folder: RunFolder,
    train: TrainConfig,
    config: EvaluateConfig,
    checkpoints: Sequence[EvaluatedCheckpoint],
    prompts: Sequence[EvaluatedPrompt],
    identity: str,
) -> list[PlannedImage]:
    """Every image, the base model's first, then checkpoint by checkpoint.

    identity: of the base model's weights. Two prompts that come to the same image share one file.
    """
    edge = train.images.resolutions[0]
    shared = GenerateConfig(
        base_model=base_model_of(train),
        negative=config.prompts.negative,
        choices=False,
        sampler=config.sampler,
        steps=config.steps,
        guidance=config.guidance,
        width_px=config.width_px or edge,
        height_px=config.height_px or edge,
        batch_size=config.batch_size,
        compute=config.compute,
    )
    images = folder.evaluation / "images"
    planned = []
    for checkpoint in (None, *checkpoints):
        used = () if checkpoint is None else (used_adapter(checkpoint, config),)
        for prompt in prompts:
            for seed in range(config.seed, config.seed + config.num_seeds):
                text = prompt.bare if checkpoint is None else prompt.prompt
                request = shared.model_copy(update={"prompt": text, "seed": seed, "adapters": used})
                digest = _digest(request, "" if checkpoint is None else checkpoint.content, config.weight, identity)
                name = f"{_in_letters(text)}-seed{seed}-{digest}.png"
                planned.append(
                    PlannedImage(checkpoint, prompt, seed, request, images / _folder_name(checkpoint) / name)
                )
    return planned


def base_model_of(train: TrainConfig) -> BaseModelConfig:
    """The base model that a run was trained on, held as `sdlora generate --run` holds it."""
    return train.base_model.model_copy(update={"precision": "auto", "quantization": "none"})


def used_adapter(checkpoint: EvaluatedCheckpoint, config: EvaluateConfig) -> UsedAdapter:
    """The checkpoint's adapter at the evaluated weight."""
    return UsedAdapter(file=str(checkpoint.path), weight=config.weight)


def generate_missing(
    planned: Sequence[PlannedImage], generator: Generator, on_progress: Callable[[int, int], None]
) -> int:
    """Generate the images that aren't there, each written as soon as it is ready; returns how many were made.

    on_progress: called with images done and all. Raises AdapterError, DataError.
    """
    different = {one.path: one for one in planned}
    missing = [one for one in different.values() if not one.is_there]
    done = len(different) - len(missing)
    for group in _by_adapter(missing):
        images = generator.generate_rows([one.request for one in group])
        for one, generated in zip(group, images, strict=True):
            one.path.parent.mkdir(parents=True, exist_ok=True)
            save_image(generated, one.path)
            done += 1
            on_progress(done, len(different))
    return len(missing)


def _by_adapter(planned: Sequence[PlannedImage]) -> list[list[PlannedImage]]:
    """Images with the same adapter and weight together: it is merged into the weights once, which is faster."""
    groups: dict[object, list[PlannedImage]] = {}
    for one in planned:
        groups.setdefault(tuple((used.file, used.weight) for used in one.request.adapters), []).append(one)
    return list(groups.values())


def _folder_name(checkpoint: EvaluatedCheckpoint | None) -> str:
    if checkpoint is None:
        return BASE
    return "final" if checkpoint.step is None else step_name(checkpoint.step)


def _in_letters(text: str) -> str:
    """The beginning of a prompt, as every disk takes it in a name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:_NAME_LETTERS].strip("-") or "empty"


def _digest(request: GenerateConfig, adapter: str, weight: float, identity: str) -> str:
    values = request.model_dump(mode="json", exclude=_NOT_HASHED)
    values["base_model"] = {"identity": identity, "clip_skip": request.base_model.clip_skip}
    values |= {"adapter": adapter, "weight": weight if adapter else 1.0, "format": _FORMAT}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
