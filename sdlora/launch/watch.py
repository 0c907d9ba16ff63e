"""All runs of a folder and how they stand, read once a moment for everyone who asks."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sdlora.file_memory import stamp_of
from sdlora.launch import queue, queue_file
from sdlora.launch.runs import RunHandle, list_runs
from sdlora.runs.curves import Curves
from sdlora.runs.state import RunState

FRESH_SECONDS = 0.5
_CURVES_KEPT = 12


@dataclass(frozen=True)
class WatchedRun:
    """A run and its state at the moment of a snapshot."""

    handle: RunHandle
    state: RunState

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.handle.name


@dataclass(frozen=True)
class Snapshot:
    """What the runs of a folder were doing at one moment."""

    runs: tuple[WatchedRun, ...] = ()
    """Newest first."""
    waiting: tuple[str, ...] = ()
    """Names of the runs in the queue, next one first."""
    is_held: bool = False

    def find(self, name: str | None) -> WatchedRun | None:
        """The run of this name, if it is there."""
        return next((run for run in self.runs if run.name == name), None)

    @property
    def active(self) -> tuple[WatchedRun, ...]:
        """Those that a process works on."""
        return tuple(run for run in self.runs if run.state.is_active)


class RunWatch:
    """Reads the runs of one folder and moves its queue on; one is enough for a program. Safe from several threads."""

    def __init__(self, runs_folder: Path) -> None:
        self.runs_folder = runs_folder
        self._lock = threading.Lock()
        self._read_at = -FRESH_SECONDS
        self._snapshot = Snapshot()
        self._ended: dict[str, tuple[object, RunState]] = {}
        self._curves: dict[Path, Curves] = {}

    def snapshot(self, *, now: bool = False) -> Snapshot:
        """The runs as they were at most half a second ago; `now` reads them again, as after an action."""
        with self._lock:
            if now or time.monotonic() - self._read_at >= FRESH_SECONDS:
                queue.advance(self.runs_folder)
                order = queue_file.read(self.runs_folder)
                runs = tuple(
                    WatchedRun(handle, self._state(handle, order.names)) for handle in list_runs(self.runs_folder)
                )
                names = {run.name for run in runs if not run.state.is_active}
                waiting = tuple(name for name in order.names if name in names)
                self._snapshot = Snapshot(runs, waiting, order.is_held)
                self._read_at = time.monotonic()
            return self._snapshot

    def training(self) -> str | None:
        """The name of a run that trains now."""
        return next((run.name for run in self.snapshot().active), None)

    def curves(self, handle: RunHandle) -> Curves:
        """Everything a run has told so far; only what is new is read."""
        with self._lock:
            known = self._curves.pop(handle.folder, None) or Curves()
            stamp = stamp_of(handle.files.events)
            if known.offset > (stamp[1] if stamp else 0):  # another run of this name, or its log was replaced
                known = Curves()
            self._curves[handle.folder] = known
            while len(self._curves) > _CURVES_KEPT:
                del self._curves[next(iter(self._curves))]
            known.read(handle.files.events)
            return known

    def _state(self, handle: RunHandle, waiting: tuple[str, ...]) -> RunState:
        """The run's state; of one that has ended it is found out again only when one of its files has changed."""
        stamp = (stamp_of(handle.files.events), stamp_of(handle.files.process), handle.name in waiting)
        known = self._ended.get(handle.name)
        if known is not None and known[0] == stamp:
            return known[1]
        state = handle.state()
        if state.is_active:
            self._ended.pop(handle.name, None)
        else:
            self._ended[handle.name] = (stamp, state)
        return state
