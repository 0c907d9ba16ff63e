"""What the page remembers: field values by name, kept on the server, so that reload and restart lose nothing."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from sdlora import atomic


class PageState:
    """Values by dotted name (`train.preset`), written to one JSON file at every change. Safe from several threads.

    A second server over the same folder writes the same file: what it changed is taken over, and not overwritten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen = _stamp(path)
        self._values = _read(path)

    def get(self, name: str, default: Any = None) -> Any:
        # Needs no lock: the dictionary is replaced as a whole, never changed.
        """The remembered value, or the default."""
        return self._values.get(name, default)

    def set(self, name: str, value: Any) -> None:
        """Remember a value that JSON can hold."""
        self.update({name: value})

    def update(self, values: dict[str, Any]) -> None:
        """Remember several values in one write."""
        with self._lock:
            self._take_over()
            self._replace({**self._values, **values})

    def took_over(self) -> bool:
        """Take over what another server wrote; whether there was anything."""
        with self._lock:
            return self._take_over()

    def _take_over(self) -> bool:
        stamp = _stamp(self._path)
        if stamp in (None, self._seen):
            return False
        self._seen, self._values = stamp, _read(self._path) or self._values
        return True

    def _replace(self, values: dict[str, Any]) -> None:
        if values == self._values:
            return
        content = json.dumps(values, ensure_ascii=False, indent=1)
        atomic.write_text(self._path, content, parents=True, durable=False)  # at every key that is pressed
        self._values = values
        self._seen = _stamp(self._path)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells that another process wrote the file since: each writing makes a file of its own."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _read(path: Path) -> dict[str, Any]:
    """The file's values; none if it is missing or damaged (field values are not worth refusing to start)."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
