"""Checkpoints on the disk: everything a run needs to go on exactly, beside an adapter file for other tools."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sdlora import atomic
from sdlora.errors import TrainingError
from sdlora.runs.checkpoints import STATE_FILE, Checkpoint
from sdlora.runs.folder import RunFolder


def save(folder: RunFolder, step: int, state: dict[str, Any], write_adapter: Callable[[Path], object]) -> Checkpoint:
    """Write a checkpoint so that it is either there whole or not at all; `write_adapter` gets the folder to fill."""
    path = folder.checkpoint(step)
    for rest in atomic.leftovers(path):  # of a process that was killed here: this one holds the run's lock
        shutil.rmtree(rest)
    with atomic.making_folder(path) as unfinished:
        write_adapter(unfinished)
        torch.save(state, unfinished / STATE_FILE)
    return Checkpoint(step, path)


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """The trainer's state as it was saved, on the CPU. Raises TrainingError when it can't be read."""
    try:
        state: dict[str, Any] = torch.load(checkpoint.state, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise TrainingError(
            f"{checkpoint.state} can't be read ({error}). Delete the folder {checkpoint.path.name} to go on from the "
            "checkpoint before it."
        ) from error
    return state
