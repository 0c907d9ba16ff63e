"""What was found out about files, remembered until they change."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from sdlora import atomic

Answer = TypeVar("Answer")

_SETTLED_SECONDS = 2.0


Stamp = tuple[int, int, int]


def stamp(status: os.stat_result) -> Stamp:
    """What another content of a file differs in: size in bytes, times of the last change in nanoseconds.

    The time of modification alone is not enough: tools that copy and unpack set it, and a file that is renamed to
    another one's name keeps its own. The other time (ctime) moves with all of that, and nobody can set it. Windows has
    none; what stands in its place there is when the file was made.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file, None for one that isn't there."""
    try:
        return stamp(path.stat())
    except OSError:
        return None


def changed_at(status: os.stat_result) -> float:
    """When a file last changed, in seconds since the epoch."""
    return max(status.st_mtime, status.st_ctime)


def is_settled(changed_at: float) -> bool:
    """Whether a change lies so far back that another one would show in a file's stamp: file systems round times."""
    return time.time() - changed_at > _SETTLED_SECONDS


def while_unchanged(most: int) -> Callable[[Callable[[Path], Answer]], Callable[[Path], Answer]]:
    """Decorator for a function of a file: its answers are kept (the newest `most`) while the file stays as it is."""

    def decorate(function: Callable[[Path], Answer]) -> Callable[[Path], Answer]:
        @lru_cache(maxsize=most)
        def ask(path: Path, _stamp: Stamp | None) -> Answer:
            return function(path)

        @wraps(function)
        def kept(path: Path) -> Answer:
            return ask(path, stamp_of(path))

        return kept

    return decorate


class FileMemory:
    """Plain facts (what JSON can hold) about files, by path and stamp, in one JSON file.

    Safe from several threads. Two processes may save at once: the last one wins, and the other's work is done again
    next time.
    """

    def __init__(self, store: Path | None, version: int) -> None:
        """store: None remembers nothing. version: of the facts' form; what another one wrote is forgotten."""
        self._store = store
        self._version = version
        self._known = self._read()
        self._asked: dict[str, list[Any]] = {}

    def get(self, path: Path, find_out: Callable[[], Any], also: float = 0.0) -> Any:
        """The facts about a file, from memory if it has not changed, else from `find_out()`.

        also: a further number to compare, such as the time of change of a file that belongs to it. Raises OSError when
        the file can't be looked at, and what `find_out` raises.
        """
        name, status = str(path.absolute()), path.stat()
        seen = [*stamp(status), also]
        known = self._known.get(name)
        facts = known[1] if known is not None and known[0] == seen else find_out()
        if is_settled(changed_at(status)):
            self._asked[name] = [seen, facts]
        return facts

    def save(self, *, keep_others: bool = False) -> None:
        """Write what was asked for since the last time, and with keep_others all else too; the rest is forgotten.

        A folder that can't be written is no error: all is only found out again.
        """
        entries = {**self._known, **self._asked} if keep_others else self._asked
        unchanged = entries == self._known
        self._known, self._asked = entries, {}
        if self._store is None or unchanged:
            return
        with suppress(OSError):
            atomic.write_json(self._store, {"version": self._version, "files": entries}, parents=True)

    def _read(self) -> dict[str, list[Any]]:
        if self._store is None:
            return {}
        try:
            content = json.loads(self._store.read_text(encoding="utf-8"))
            entries = content["files"].items() if content["version"] == self._version else ()
            return {name: [stamp, facts] for name, (stamp, facts) in entries}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
