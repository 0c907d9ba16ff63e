"""The queue's order on disk: one small file beside the runs, changed under a lock, replaced in one go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock

from sdlora import atomic

FILE = "queue.json"


@dataclass(frozen=True)
class QueueOrder:
    """Names of the waiting runs' folders, next one first."""

    names: tuple[str, ...] = ()
    is_held: bool = False
    """While true, nothing is started."""

    def without(self, name: str) -> QueueOrder:
        """The order without one run; the same if that doesn't wait."""
        return replace(self, names=tuple(each for each in self.names if each != name))


def read(runs_folder: Path) -> QueueOrder:
    """The order as it is now; an empty one if there is no file."""
    try:
        values = json.loads((runs_folder / FILE).read_text(encoding="utf-8"))
        return QueueOrder(tuple(str(name) for name in values["names"]), bool(values["is_held"]))
    except (OSError, ValueError, KeyError, TypeError):
        return QueueOrder()


def names(runs_folder: Path) -> tuple[str, ...]:
    """Names of the waiting runs' folders, next one first."""
    return read(runs_folder).names


def lock(runs_folder: Path) -> FileLock:
    """The lock under which the queue is changed and its runs are started. May be taken again by who holds it."""
    runs_folder.mkdir(parents=True, exist_ok=True)
    return FileLock(runs_folder / ".queue.lock", is_singleton=True)


def change(runs_folder: Path, alter: Callable[[QueueOrder], QueueOrder]) -> QueueOrder:
    """Change the order under the lock; returns the new one."""
    with lock(runs_folder):
        before = read(runs_folder)
        after = alter(before)
        if after != before:
            atomic.write_json(runs_folder / FILE, asdict(after), indent=2)
        return after
