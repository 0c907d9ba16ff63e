"""What a run has made so far: adapter files by step, previews by step and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.runs import checkpoints
from sdlora.runs.folder import RunFolder, by_step


@dataclass(frozen=True)
class RunAdapterFile:
    """An adapter file of a run, ready to be used."""

    path: Path
    step: int | None
    """Optimizer updates; None for the finished file."""
    is_best: bool
    """Whether it predicts held-out images best of all."""


@dataclass(frozen=True)
class PreviewImage:
    """One picture generated while training; those of one prompt have the same seed."""

    path: Path
    step: int
    prompt_index: int
    prompt: str


def adapter_files(folder: RunFolder) -> list[RunAdapterFile]:
    """Those of the checkpoints, oldest first, then the finished one if there is one.

    A checkpoint whose state was deleted, to save space, can't be gone on from, but its adapter is as good as before.
    """
    best = checkpoints.best_step(folder)
    found = [
        RunAdapterFile(path, step, step == best)
        for step, inside in by_step(folder.checkpoints).items()
        for path in sorted(inside.glob("*.safetensors"))
    ]
    finished = [path for path in sorted(folder.path.glob("*.safetensors")) if path.is_file()]
    return found + [RunAdapterFile(path, None, False) for path in finished]


def preview_images(folder: RunFolder, prompts: Sequence[str] = ()) -> list[PreviewImage]:
    """All previews by step, then by prompt. `prompts` are the run's, in their order."""
    return [
        PreviewImage(path, step, index, prompts[index] if index < len(prompts) else "")
        for step, inside in by_step(folder.path / "previews").items()
        for index, path in sorted((int(path.stem), path) for path in inside.glob("*.png") if path.stem.isdecimal())
    ]
