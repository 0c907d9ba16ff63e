"""Checkpoints: everything a run needs to go on exactly, and an adapter file that other tools can load.

Finding them loads no torch: the launcher lists them too.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import atomic
from sdlora.errors import TrainingError

_STATE = "state.pt"
_BEST = "best.json"
_FOLDER = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run."""

    step: int
    path: Path

    def load(self) -> dict[str, Any]:
        """The trainer's state as it was saved, on the CPU. Raises TrainingError when it can't be read."""
        import torch

        try:
            state: dict[str, Any] = torch.load(self.path / _STATE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise TrainingError(
                f"{self.path / _STATE} can't be read ({error}). Delete the folder {self.path.name} to go on from the "
                "checkpoint before it."
            ) from error
        return state


def save(folder: Path, step: int, state: dict[str, Any], write_adapter: Callable[[Path], object]) -> Checkpoint:
    """Write a checkpoint so that it is either there whole or not at all; `write_adapter` gets the folder to fill."""
    import torch

    final = folder / f"step_{step:06d}"
    for rest in atomic.leftovers(final):  # of a process that was killed here: this one holds the run's lock
        shutil.rmtree(rest)
    with atomic.making_folder(final) as unfinished:
        write_adapter(unfinished)
        torch.save(state, unfinished / _STATE)
    return Checkpoint(step, final)


def find(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        Checkpoint(int(match[1]), path)
        for path in folder.iterdir()
        if (match := _FOLDER.fullmatch(path.name)) and (path / _STATE).is_file()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest(folder: Path) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one."""
    found = find(folder)
    return found[-1] if found else None


def name_best(folder: Path, step: int, relative_loss: float) -> None:
    """Note which checkpoint predicts the held-out images best."""
    atomic.write_json(folder / _BEST, {"step": step, "relative_loss": relative_loss}, parents=True)


def best_step(folder: Path) -> int | None:
    """The step of the best checkpoint by validation, if one was measured."""
    try:
        step = json.loads((folder / _BEST).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError):
        return None
    return int(step)


def prune(folder: Path, keep: int) -> list[Checkpoint]:
    """Remove all but the newest `keep` checkpoints and the best one; returns what was removed."""
    best = best_step(folder)
    removed = [checkpoint for checkpoint in find(folder)[:-keep] if checkpoint.step != best]
    for checkpoint in removed:
        shutil.rmtree(checkpoint.path)
    return removed
