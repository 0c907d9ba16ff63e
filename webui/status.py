"""One line in the header: what trains now, and how the last one ended."""

from __future__ import annotations

import html
import threading
import time
from pathlib import Path

from sdlora.launch.runs import list_runs
from sdlora.runs.state import RunState

_LOOK_SECONDS = 2.0
"""All open pages share one look at the runs this often."""
_NEWEST = 20
_ENDINGS = {
    "finished": "has finished",
    "stopped": "was stopped",
    "crashed": "has crashed: see the Runs tab",
    "failed": "has failed: see the Runs tab",
}


class StatusLine:
    """Follows the newest runs of a folder. Safe from several threads."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._active: frozenset[str] = frozenset()
        self._ended = ""
        self._text = ""

    def text(self) -> str:
        """HTML of the line: tenths of the way only, since screen readers read out each change."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= _LOOK_SECONDS:
                self._text = self._look()
                self._looked = now
            return self._text

    def _look(self) -> str:
        states = {handle.name: handle.state() for handle in list_runs(self._runs)[:_NEWEST]}
        active = frozenset(name for name, state in states.items() if state.is_active)
        for name in self._active - active:
            if name in states:
                self._ended = f"{name} {_ENDINGS.get(states[name].status, states[name].status)}"
        self._active = active
        words = [_words(name, states[name]) for name in sorted(active)] or ([self._ended] if self._ended else [])
        return f"<p>{html.escape('; '.join(words))}</p>" if words else ""


def _words(name: str, state: RunState) -> str:
    if state.status == "running" and state.total_steps:
        return f"{name}: {state.step * 10 // state.total_steps * 10} % of {state.total_steps} steps"
    return f"{name}: {state.stage or state.status}"
