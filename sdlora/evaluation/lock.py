"""One process at a time evaluates a run, or makes one of its checkpoints the result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from sdlora import atomic
from sdlora.errors import RunError
from sdlora.runs.folder import RunFolder

PROMOTING = ".promoting"
"""In a run: where a result is made ready before it is put in place."""


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Inside, this process alone evaluates the run, and what a killed one left half written is gone."""
    place = folder.evaluation
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder.path} is being evaluated already by another process") from None
    try:
        atomic.sweep(place)
        shutil.rmtree(folder.path / PROMOTING, ignore_errors=True)
        yield
    finally:
        lock.release()
