"""All runs of a workspace and how they stand, read once a moment for all open pages together."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sdlora.launch import queue, queue_file
from sdlora.launch.runs import RunHandle, list_runs
from sdlora.runs.state import RunState
from webui.run_view.curves import Curves

FRESH_SECONDS = 0.5
_CURVES_KEPT = 12


@dataclass(frozen=True)
class SeenRun:
    """A run and its state at the moment of the look."""

    handle: RunHandle
    state: RunState

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.handle.name


@dataclass(frozen=True)
class Look:
    """What a workspace's runs were doing at one moment."""

    runs: tuple[SeenRun, ...] = ()
    """Newest first."""
    waiting: tuple[str, ...] = ()
    """Names of the runs in the queue, next one first."""
    is_held: bool = False

    def find(self, name: str | None) -> SeenRun | None:
        """The run of this name, if it is there."""
        return next((run for run in self.runs if run.name == name), None)

    @property
    def active(self) -> tuple[SeenRun, ...]:
        """Those that a process works on."""
        return tuple(run for run in self.runs if run.state.is_active)


class RunWatch:
    """Looks at the runs of one folder; moves the queue on. Safe from several threads."""

    def __init__(self, runs_folder: Path) -> None:
        self.runs_folder = runs_folder
        self._lock = threading.Lock()
        self._at = -FRESH_SECONDS
        self._look = Look()
        self._ended: dict[str, tuple[object, RunState]] = {}
        self._curves: dict[Path, Curves] = {}

    def look(self, *, now: bool = False) -> Look:
        """The runs as they were at most half a second ago; `now` reads them again, as after an action."""
        with self._lock:
            if now or time.monotonic() - self._at >= FRESH_SECONDS:
                queue.advance(self.runs_folder)
                order = queue_file.read(self.runs_folder)
                runs = tuple(
                    SeenRun(handle, self._state(handle, order.names)) for handle in list_runs(self.runs_folder)
                )
                names = {run.name for run in runs if not run.state.is_active}
                waiting = tuple(name for name in order.names if name in names)
                self._look = Look(runs, waiting, order.is_held)
                self._at = time.monotonic()
            return self._look

    def curves(self, handle: RunHandle) -> Curves:
        """Everything a run has told so far; only what is new is read."""
        with self._lock:
            known = self._curves.pop(handle.folder, None) or Curves()
            if known.offset > _size(handle.files.events):  # another run of this name, or its log was replaced
                known = Curves()
            self._curves[handle.folder] = known
            while len(self._curves) > _CURVES_KEPT:
                del self._curves[next(iter(self._curves))]
            known.read(handle)
            return known

    def _state(self, handle: RunHandle, waiting: tuple[str, ...]) -> RunState:
        """The run's state; of one that has ended it is found out again only when one of its files has changed."""
        stamp = (_stamp(handle.files.events), _stamp(handle.files.process), handle.name in waiting)
        known = self._ended.get(handle.name)
        if known is not None and known[0] == stamp:
            return known[1]
        state = handle.state()
        if state.is_active:
            self._ended.pop(handle.name, None)
        else:
            self._ended[handle.name] = (stamp, state)
        return state


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _size(path: Path) -> int:
    stamp = _stamp(path)
    return stamp[1] if stamp else 0
