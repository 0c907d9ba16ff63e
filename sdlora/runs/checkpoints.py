"""A run's checkpoints: which there are, which is best, which may go.

One is a folder `checkpoints/step_000500` with the trainer's state (written and read by
`sdlora.training.outputs.checkpoint_state`) and an adapter file that other tools can load.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sdlora import atomic
from sdlora.runs.folder import RunFolder, by_step

STATE_FILE = "state.pt"
_BEST_FILE = "best.json"
_PROMOTED_FILE = "promoted.json"


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run."""

    step: int
    path: Path

    @property
    def state(self) -> Path:
        """The file that holds everything a run needs to go on exactly."""
        return self.path / STATE_FILE


def find(folder: RunFolder) -> list[Checkpoint]:
    """All complete checkpoints of a run, oldest first."""
    found = [Checkpoint(step, path) for step, path in by_step(folder.checkpoints).items()]
    return [checkpoint for checkpoint in found if checkpoint.state.is_file()]


def newest(folder: RunFolder) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one."""
    found = find(folder)
    return found[-1] if found else None


def name_best(folder: RunFolder, step: int | None, relative_loss: float) -> None:
    """Note which checkpoint predicts the held-out images best; None for no one."""
    if step is None:
        (folder.checkpoints / _BEST_FILE).unlink(missing_ok=True)
        return
    best = {"step": step, "relative_loss": relative_loss}
    atomic.write_json(folder.checkpoints / _BEST_FILE, best, parents=True)


def best_step(folder: RunFolder) -> int | None:
    """The step of the best checkpoint by validation, if one was measured."""
    try:
        return int(json.loads((folder.checkpoints / _BEST_FILE).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def name_promoted(folder: RunFolder, name: str) -> None:
    """Note the checkpoint, by its folder's name, that was made the run's result; it and those before it stay."""
    names = sorted({name, *promoted_names(folder)})
    atomic.write_json(folder.checkpoints / _PROMOTED_FILE, {"checkpoints": names}, parents=True)


def promoted_names(folder: RunFolder) -> list[str]:
    """The folders' names of the checkpoints that were made the run's result."""
    try:
        names = json.loads((folder.checkpoints / _PROMOTED_FILE).read_text(encoding="utf-8"))["checkpoints"]
        return [str(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def prune(folder: RunFolder, keep: int, stays: Callable[[int], bool] = lambda step: False) -> list[Checkpoint]:
    """Remove all but the newest `keep` checkpoints, the best one, those whose step `stays` and those that were made
    the run's result; returns the removed."""
    best, promoted = best_step(folder), promoted_names(folder)
    old = [checkpoint for checkpoint in find(folder)[:-keep] if checkpoint.path.name not in promoted]
    removed = [checkpoint for checkpoint in old if checkpoint.step != best and not stays(checkpoint.step)]
    for checkpoint in removed:
        with suppress(FileNotFoundError):  # somebody makes room at the same time
            shutil.rmtree(checkpoint.path)
    return removed
