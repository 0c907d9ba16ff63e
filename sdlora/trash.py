"""Deleting that can be taken back: what is deleted moves into a trash folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.atomic import numbered


@dataclass(frozen=True)
class Deleted:
    """Something in the trash, and where it was."""

    original: Path
    trashed: Path


def move_to_trash(paths: Sequence[Path], trash: Path) -> list[Deleted]:
    """Move files or folders into the trash; those that are gone already are passed over."""
    trash.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    deleted = []
    for path in paths:
        if path.exists():
            target = _free(trash / f"{stamp}-{path.name}")
            shutil.move(path, target)
            deleted.append(Deleted(path, target))
    return deleted


def put_back(deleted: Sequence[Deleted]) -> list[Path]:
    """Undo a deletion; a place that was taken meanwhile gets a number. Returns where things are now."""
    restored = []
    for one in deleted:
        if one.trashed.exists():
            one.original.parent.mkdir(parents=True, exist_ok=True)
            restored.append(Path(shutil.move(one.trashed, _free(one.original))))
    return restored


def _free(path: Path) -> Path:
    names = (path.with_name(f"{name}{path.suffix}") for name in numbered(path.stem))
    return next(free for free in names if not free.exists())
