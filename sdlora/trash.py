"""Deleting that can be taken back: what is deleted moves into a trash folder until that is emptied."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sdlora import atomic


@dataclass(frozen=True)
class Size:
    """How much lies in a folder."""

    files: int
    size_bytes: int


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
            _move(path, target)
            deleted.append(Deleted(path, target))
    return deleted


def put_back(deleted: Sequence[Deleted]) -> list[Path]:
    """Undo a deletion; a place that was taken meanwhile gets a number. Returns where things are now."""
    restored = []
    for one in deleted:
        if one.trashed.exists():
            one.original.parent.mkdir(parents=True, exist_ok=True)
            target = _free(one.original)
            _move(one.trashed, target)
            restored.append(target)
    return restored


def size_of(folder: Path) -> Size:
    """Number and size of all files below a folder; links are not followed."""
    files = size_bytes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted just now
                size_bytes += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118
                files += 1
    return Size(files, size_bytes)


def empty_folder(folder: Path) -> Size:
    """Delete everything in a folder for good; returns what it was. Raises OSError for what can't be deleted."""
    before = size_of(folder)
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    return before


def _remove_folder(path: Path) -> None:
    """Also where another process, told the same, removes it at the same time."""
    while path.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _move(source: Path, target: Path) -> None:
    """Rename, or from one disk to another copy and then delete, so that at both places there is all of it or nothing.

    A plain `shutil.move` that is killed, or meets a full disk, leaves half of a dataset in the trash or at its place.
    """
    try:
        atomic.move(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        with atomic.making_folder(target) as copy:
            shutil.copytree(source, copy, symlinks=True, dirs_exist_ok=True)
    else:
        atomic.copy_file(source, target)
    atomic.discard(source)


def _free(path: Path) -> Path:
    """The path itself, or one with a number where something is there already."""
    candidates = (path.with_name(f"{stem}{path.suffix}") for stem in atomic.numbered(path.stem))
    return next(candidate for candidate in candidates if not candidate.exists())
