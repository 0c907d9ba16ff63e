"""The adapters in use, one list for Mix and Generate, kept in the page's state: reloads and restarts see the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict

from sdlora.library.rows import Rows, rows_from_plain
from webui.state import PageState

STATE = "mix.rows"


class ActiveAdapters:
    """The rows and their keeping. `change` is the only way to alter them; safe from several threads."""

    def __init__(self, state: PageState) -> None:
        self._state = state
        self._lock = threading.RLock()
        self._rows = rows_from_plain(state.get(STATE))
        self._revision = 0

    @property
    def rows(self) -> Rows:
        """The rows as they are now."""
        return self._rows

    def now(self) -> tuple[Rows, int]:
        """The rows, and a number that grows with each change."""
        with self._lock:
            return self._rows, self._revision

    def change(self, operation: Callable[[Rows], Rows]) -> Rows:
        """Apply an operation on the rows and remember the outcome."""
        with self._lock:
            if self._state.took_over():  # a second server over the same folder may have changed them
                self._rows = rows_from_plain(self._state.get(STATE))
            self._rows = operation(self._rows)
            self._revision += 1
            self._state.set(STATE, [asdict(row) for row in self._rows])
            return self._rows
