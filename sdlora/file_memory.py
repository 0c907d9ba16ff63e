"""What was read from files, kept as long as the files stay as they are: by path, size and modification time."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

Answer = TypeVar("Answer")
Stamp = list[float]
"""Numbers that change when a file does."""


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Modification time in nanoseconds and size in bytes, None for a file that isn't there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def while_unchanged(most: int) -> Callable[[Callable[[Path], Answer]], Callable[[Path], Answer]]:
    """Decorator for a function of a file: its answers are kept (the newest `most`) while the file stays as it is."""

    def decorate(function: Callable[[Path], Answer]) -> Callable[[Path], Answer]:
        @lru_cache(maxsize=most)
        def ask(path: Path, _stamp: tuple[int, int] | None) -> Answer:
            return function(path)

        @wraps(function)
        def kept(path: Path) -> Answer:
            return ask(path, stamp_of(path))

        return kept

    return decorate


class FileMemory:
    """Plain values by file, in one JSON file, so that the next start of a program reads nothing twice.

    Use it as: `recall` for each file that is there now, then `keep` all that was recalled. What is not among it is
    forgotten. A memory that is missing, damaged or of another format is empty; then all is read again.
    """

    def __init__(self, path: Path, format_: int) -> None:
        """format_: counts up when what is kept gets another shape."""
        self._path, self._format = path, format_
        self._known = self._read()

    def recall(self, file: Path, stamp: Stamp, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is known of a file; `read()` is asked when it is new or its stamp has changed."""
        known = self._known.get(str(file))
        return known if known is not None and known["stamp"] == stamp else {"stamp": stamp, **read()}

    def keep(self, entries: dict[Path, dict[str, Any]]) -> None:
        """Remember these entries in place of those before; the file is written only when something changed."""
        known = {str(file): entry for file, entry in entries.items()}
        if known == self._known:
            return
        self._known = known
        content = json.dumps({"format": self._format, "files": known}, ensure_ascii=False)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.part")
        beside.write_text(content, encoding="utf-8")
        beside.replace(self._path)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return dict(content["files"]) if content["format"] == self._format else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
