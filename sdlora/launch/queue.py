"""Runs that wait for their turn: one at a time on an accelerator, in an order that is kept on disk.

The queue belongs to a runs folder. Whoever calls `advance` moves it on: the web page each second, and each training
when it ends, so that it goes on without the page too. Runs started from the command line count as busy.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sdlora import disk
from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError, RunError, SdloraError
from sdlora.events import RunFailed
from sdlora.launch import queue_file
from sdlora.launch.queue_file import QueueOrder
from sdlora.launch.runs import RunHandle, list_runs, prepare
from sdlora.sinks.jsonl import JsonlSink
from sdlora.training.preflight.paths import missing_paths

_SAME_ACCELERATOR = ("auto", "cpu", "cuda", "cuda:0", "mps")


@dataclass(frozen=True)
class Queue:
    """The queue of a runs folder at one moment: what waits, what runs, whether it is held."""

    waiting: tuple[RunHandle, ...]
    """Next one first."""
    running: tuple[RunHandle, ...]
    is_held: bool
    damage: str = ""
    """Why the order on disk can't be read, if it can't; it is on hold then."""
    """While true, nothing is started."""


def read(runs_folder: Path) -> Queue:
    """The queue as it is now; runs that wait by the file but train already count as running."""
    runs_folder = runs_folder.resolve()
    order = queue_file.read(runs_folder)
    waiting = tuple(handle for handle in _handles(runs_folder, order) if not handle.state().is_active)
    return Queue(waiting, tuple(_running(runs_folder)), order.is_held, order.damage)


def submit(config: TrainConfig | Path | str, runs_folder: Path | None = None) -> RunHandle:
    """Make a new run and put it into the queue; it starts at once if nothing else runs or waits.

    Raises ConfigError when it names folders or files that are not there.
    """
    if not isinstance(config, TrainConfig):
        config = files.load(config)
    if problems := missing_paths(config, "give the folder with the training images"):
        raise ConfigError("this run", problems)
    handle = prepare(config, runs_folder)
    enqueue(handle)
    advance(handle.folder.parent)
    return handle


def enqueue(handle: RunHandle, position: int | None = None) -> None:
    """Put a run that isn't running into the queue, last or at a position from 0. Call `advance` to start it.

    Without a position one that waits already keeps its place: to ask twice is no wish to wait longer.
    """
    state = handle.state()
    if not handle.can_begin(state):
        raise RunError(f"{handle.name} is {state.status}: there is nothing to queue.")

    def alter(order: QueueOrder) -> QueueOrder:
        if position is None and handle.name in order.names:
            return order
        names = list(order.without(handle.name).names)
        names.insert(len(names) if position is None else position, handle.name)
        return replace(order, names=tuple(names))

    queue_file.change(handle.folder.parent, alter)


def remove(handle: RunHandle) -> None:
    """Take a run out of the queue; its folder stays."""
    queue_file.change(handle.folder.parent, lambda order: order.without(handle.name))


def reorder(runs_folder: Path, names: list[str]) -> None:
    """Put the waiting runs into the order of these folder names; those not named come after, in their old order."""

    def alter(order: QueueOrder) -> QueueOrder:
        known = [name for name in dict.fromkeys(names) if name in order.names]
        return replace(order, names=(*known, *(name for name in order.names if name not in known)))

    queue_file.change(runs_folder.resolve(), alter)


def hold(runs_folder: Path, is_held: bool = True) -> None:
    """Start nothing more until the hold is lifted; what runs goes on."""
    queue_file.change(runs_folder.resolve(), lambda order: replace(order, is_held=is_held))


def advance(runs_folder: Path) -> list[RunHandle]:
    """Start the next waiting run of each accelerator on which nothing runs; returns the started ones.

    May be called as often as you like and from several processes at once: one starts, the others see it running.
    A run that can't be started (its folder is gone, it runs already, its configuration is damaged) leaves the queue.
    """
    runs_folder = runs_folder.resolve()
    # Without the lock: this is asked every second and nearly always answered here.
    if not queue_file.names(runs_folder):
        return []
    with queue_file.lock(runs_folder):
        order = queue_file.read(runs_folder)
        if order.is_held:
            return []
        busy = {accelerator(handle) for handle in _running(runs_folder)}
        started: list[RunHandle] = []
        for name in order.names:
            handle = RunHandle(runs_folder / name)
            if not handle.files.config.is_file() or not handle.state().can_start:
                remove(handle)
                continue
            device = accelerator(handle)
            if device in busy:
                continue
            busy.add(device)
            try:
                handle.resume()
                started.append(handle)
            except RunError:  # begun on the command line at this moment
                continue
            except SdloraError as error:  # one run that can't begin must not keep the others waiting
                busy.discard(device)
                _record_failure(handle, str(error))
            except OSError as error:  # nor one whose folder can't be written to
                remove(handle)
                busy.discard(device)
                _record_failure(handle, disk.explain(error, handle.folder))
        return started


def _record_failure(handle: RunHandle, error: str) -> None:
    """Into the run's own log and events, where those look who ask why it stands still."""
    with suppress(OSError), handle.files.log.open("a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(f"error: {error}\n")
    with suppress(OSError):
        sink = JsonlSink(handle.files.events)
        sink.emit(RunFailed(step=handle.state().step, message=error))
        sink.close()


def accelerator(handle: RunHandle) -> str:
    """A name for the device on which a run computes, the same for all that can't be told apart without torch."""
    try:
        device = handle.config().optimization.device
    except ConfigError:
        device = "auto"
    return _SAME_ACCELERATOR[0] if device in _SAME_ACCELERATOR else device


def _handles(runs_folder: Path, order: QueueOrder) -> list[RunHandle]:
    handles = [RunHandle(runs_folder / name) for name in order.names]
    return [handle for handle in handles if handle.files.config.is_file()]


def _running(runs_folder: Path) -> list[RunHandle]:
    return [handle for handle in list_runs(runs_folder) if handle.state().is_active]
