"""The queue's order on disk: one small file beside the runs, changed under a lock, replaced in one go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from sdlora import atomic
from sdlora.errors import RunError
from sdlora.words import as_typed

FILE = "queue.json"


@dataclass(frozen=True)
class QueueOrder:
    """Names of the waiting runs' folders, next one first."""

    names: tuple[str, ...] = ()
    is_held: bool = False
    """While true, nothing is started."""
    damage: str = ""
    """Why the file can't be read, if it can't."""

    def without(self, name: str) -> QueueOrder:
        """The order without one run; the same if that doesn't wait."""
        return replace(self, names=tuple(each for each in self.names if each != name))


def read(runs_folder: Path) -> QueueOrder:
    """The order as it is now; an empty one if there is no file.

    A damaged file counts as a queue on hold: nothing starts by itself until somebody has looked.
    """
    path = runs_folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return QueueOrder()
    except ValueError:
        return QueueOrder(is_held=True, damage=f"{path} is no text")
    try:
        values = json.loads(text)
        names = values["names"]
        if not isinstance(names, list):
            raise TypeError("names is no list")
        return QueueOrder(tuple(str(name) for name in names), bool(values["is_held"]))
    except (ValueError, KeyError, TypeError) as error:
        return QueueOrder(is_held=True, damage=f"{path} is damaged ({error})")


def names(runs_folder: Path) -> tuple[str, ...]:
    """Names of the waiting runs' folders, next one first."""
    return read(runs_folder).names


def lock(runs_folder: Path) -> FileLock:
    """The lock under which the queue is changed and its runs are started. May be taken again by who holds it."""
    runs_folder.mkdir(parents=True, exist_ok=True)
    # Resolved: two locks of one file by different names would wait for each other within one process.
    return FileLock(runs_folder.resolve() / ".queue.lock", is_singleton=True)


def change(runs_folder: Path, alter: Callable[[QueueOrder], QueueOrder]) -> QueueOrder:
    """Change the order under the lock; returns the new one."""
    with lock(runs_folder):
        before = read(runs_folder)
        after = alter(before)
        if after != before and before.damage:
            raise RunError(
                f"{before.damage}, so which runs wait is not known: delete it, then put them in again "
                f"(`{as_typed('sdlora', 'runs', runs_folder)}` lists all runs)"
            )
        if after != before:
            atomic.write_json(runs_folder / FILE, {"names": after.names, "is_held": after.is_held}, indent=2)
        return after
