"""All runs of a folder: how they stand, read once a moment for everyone who asks; started and put into an order."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdlora.config import files, schema
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.train import TrainConfig
from sdlora.constants import MIB
from sdlora.errors import ConfigError
from sdlora.file_memory import stamp_of, while_unchanged
from sdlora.launch import queue, queue_file
from sdlora.launch.runs import RunHandle, list_runs
from sdlora.launch.starting import Starter
from sdlora.runs.curves import Curves
from sdlora.runs.state import RunState
from sdlora.text_files import UnreadableTextError, read_text

FRESH_SECONDS = 0.5
_CURVES_KEPT = 12
_LOOK_BYTES = 8 * MIB
"""Of a run's log at one look, about 40,000 steps: less than half a second, in which all others wait."""
_BASE_MODEL = re.compile(r"^base_model:\n(?: .*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class WatchedRun:
    """A run and its state at the moment of a snapshot."""

    handle: RunHandle
    state: RunState

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.handle.name

    @cached_property
    def created_at(self) -> float:
        """Seconds since the epoch when the run was made; 0 if its folder is gone."""
        return self.handle.created_at


def settings_that_differ(runs: Sequence[WatchedRun]) -> list[tuple[str, list[Any]]]:
    """Each setting that isn't the same in all runs, with its value (or schema.ABSENT) in each."""
    return schema.differing([_settings_of(run) for run in runs])


def _settings_of(run: WatchedRun) -> dict[str, Any]:
    try:
        return schema.flatten(run.handle.config())
    except ConfigError:
        return {}


@while_unchanged(most=1_000)  # asked of every run each time a page opens
def _base_model(config: Path) -> str | None:
    """What a run trains on. Of its long configuration that section alone is read: there may be hundreds of runs."""
    try:
        section = _BASE_MODEL.search(read_text(config))
        values = files.parse_yaml(section[0], str(config)) if section else files.read_yaml(config)
        return BaseModelConfig.model_validate(values.get("base_model", {})).model
    except (OSError, UnreadableTextError, ConfigError, ValueError):
        return None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What the runs of a folder were doing at one moment; equal to itself alone."""

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
    """Reads the runs of one folder, moves its queue on, starts runs; one is enough. Safe from several threads."""

    def __init__(self, runs_folder: Path) -> None:
        self.runs_folder = runs_folder
        self._lock = threading.Lock()
        self._read_at = -FRESH_SECONDS
        self._snapshot = Snapshot()
        self._ended: dict[str, tuple[object, RunState]] = {}
        self._curves: dict[Path, Curves] = {}
        self._starter = Starter(runs_folder)

    # ---- reading

    def snapshot(self, *, now: bool = False) -> Snapshot:
        """The runs as they were at most half a second ago; `now` reads them again, as after an action."""
        with self._lock:
            # All under the lock, so that of many pages that ask at once one looks at the disk and the others get its
            # answer.
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

    def curves(self, handle: RunHandle, *, whole: bool = False) -> Curves:
        """What a run has told so far; only what is new is read.

        Of a very long log one look takes in a part, as `Curves.unread` tells, unless the whole is asked for.
        """
        with self._lock:
            # Taken out and put in again, so that the ones looked at longest ago come first.
            known = self._curves.pop(handle.folder, None) or Curves()
            stamp = stamp_of(handle.files.events)
            if known.offset > (stamp[1] if stamp else 0):  # another run of this name, or its log was replaced
                known = Curves()
            self._curves[handle.folder] = known
            while len(self._curves) > _CURVES_KEPT:
                del self._curves[next(iter(self._curves))]
            known.read(handle.files.events, None if whole else _LOOK_BYTES)
            return known

    def base_models(self) -> list[str]:
        """What each run trains on, newest run first."""
        return [model for run in self.snapshot().runs if (model := _base_model(run.handle.files.config))]

    @property
    def is_reading(self) -> bool:
        """Whether a log that is looked at has not been read to its end."""
        return any(curves.unread > 0 for curves in list(self._curves.values()))

    # ---- starting and ordering

    def start(self, config: TrainConfig) -> RunHandle:
        """Make a run and start it now. Raises RunError when another one runs or waits on the same accelerator."""
        handle = self._starter.start(config)
        self.snapshot(now=True)
        return handle

    def enqueue(self, config: TrainConfig) -> RunHandle:
        """Make a run and put it last into the queue; it starts when its turn comes."""
        handle = self._starter.enqueue(config)
        self.snapshot(now=True)
        return handle

    def resume(self, handle: RunHandle) -> str | None:
        """Go on with a run now, or after the one that trains, whose name is returned then."""
        with queue_file.lock(self.runs_folder):  # so that no other server starts one between the look and the start
            running = queue.read(self.runs_folder).running
            busy = next((run.name for run in running if run.name != handle.name), None)
            if busy is None:
                handle.resume()
            else:
                queue.enqueue(handle)
        return busy

    def move(self, name: str, by: int) -> None:
        """Move a waiting run up (-1) or down (+1) in the queue, as far as there is room."""
        waiting = list(self.snapshot(now=True).waiting)
        if name in waiting:
            place = waiting.index(name)
            other = min(max(0, place + by), len(waiting) - 1)
            waiting[place], waiting[other] = waiting[other], waiting[place]
            queue.reorder(self.runs_folder, waiting)

    def take_out(self, name: str) -> None:
        """Take a run out of the queue; its folder stays."""
        queue.remove(RunHandle(self.runs_folder / name))

    def hold(self, is_held: bool) -> None:
        """Start nothing more until the hold is lifted; what runs goes on."""
        queue.hold(self.runs_folder, is_held)

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
