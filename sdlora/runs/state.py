"""The state of a run, found out from its process and its event log each time it is asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Literal

from sdlora import disk
from sdlora.config import files
from sdlora.errors import SdloraError
from sdlora.events import (
    Progress,
    RunFailed,
    RunFinished,
    RunStarted,
    StepFinished,
    Stopping,
)
from sdlora.processes import ProcessRecord
from sdlora.runs.event_log import iterate_backwards, iterate_events, last_words, text_tail
from sdlora.runs.folder import RunFolder

RunStatus = Literal["queued", "starting", "running", "stopping", "stopped", "finished", "crashed", "failed"]
"""queued: made and waiting in the queue. starting: its process lives and prepares. running: it trains. stopping: it was
asked to stop and saves. stopped: it saved and ended before its last step, or has never begun. finished: all steps done.
failed: it ended with an error that it told. crashed: its process is gone without a word (killed, out of memory, machine
off). All of queued, stopped, crashed and failed can be started or gone on with."""

ACTIVE: tuple[RunStatus, ...] = ("starting", "running", "stopping")

MIN_STEPS_FOR_SPEED = 30
"""Steps before which speed and remaining time are not told: the first ones are slower."""
_STEPS_AVERAGED = 50


@dataclass(frozen=True)
class RunState:
    """How a run stands at one moment."""

    status: RunStatus
    step: int = 0
    """Optimizer updates done."""
    total_steps: int | None = None
    """Updates of the whole run; None until its process has counted the images."""
    stage: str | None = None
    """What is being prepared just now, for example "caching images", with `stage_done` of `stage_total`."""
    stage_done: int = 0
    stage_total: int = 0
    loss: float | None = None
    """Mean of the last 50 steps' losses."""
    memory_gib: float | None = None
    """Peak memory: of the card if there is one, of the process otherwise."""
    steps_per_second: float | None = None
    """Mean of the last 50 steps, without what lies between them; None before 30 steps."""
    eta_seconds: float | None = None
    """Remaining time, validation, previews and checkpoints counted in; None before 30 steps and when not running."""
    started_at: float | None = None
    """Seconds since the epoch when the newest process began to train."""
    updated_at: float | None = None
    """Seconds since the epoch of the newest event."""
    last_error: str | None = None
    """failed, crashed: what went wrong, in one or a few lines."""
    adapter: str | None = None
    """finished, stopped: path of the adapter file."""
    process_id: int | None = None
    """Of the living process."""

    @property
    def is_active(self) -> bool:
        """Whether a process works on the run."""
        return self.status in ACTIVE

    @property
    def can_start(self) -> bool:
        """Whether the run can be begun or gone on with."""
        return not self.is_active and self.status != "finished"

    @property
    def actions(self) -> frozenset[str]:
        """What can be done with the run: some of stop, kill, resume, save, preview and delete."""
        possible = {
            "stop": self.status in ("running", "starting"),
            "kill": self.status == "stopping",
            "resume": self.can_start and self.status != "queued",
            "save": self.status == "running",
            "preview": self.status == "running",
            "delete": not self.is_active,
        }
        return frozenset(name for name, can in possible.items() if can)

    @property
    def silent_seconds(self) -> float | None:
        """Time since the newest event, for "no news for 5 minutes"."""
        return None if self.updated_at is None else max(0.0, time.time() - self.updated_at)


@dataclass
class _Newest:
    """What the events of the newest process say, read from the end only as far as needed."""

    ending: RunFinished | RunFailed | None = None
    is_stopping: bool = False
    progress: Progress | None = None
    """Only when nothing came after it."""
    time: float | None = None
    steps: list[StepFinished] = field(default_factory=list)
    """The newest ones, newest first."""


def derive(folder: RunFolder, *, is_queued: bool = False) -> RunState:
    """The state of the run in a folder."""
    record = ProcessRecord.read(folder.process)
    # In this order: what a process writes last is written before it is gone.
    alive = record is not None and record.is_alive(folder.process)
    offset = record.events_offset if record else 0
    newest = _read_newest(folder, offset)
    state = _figures(folder, newest, offset)
    resting = replace(state, steps_per_second=None, eta_seconds=None)
    if is_queued and not alive:
        return replace(resting, status="queued")
    if newest.ending is not None:
        if isinstance(newest.ending, RunFailed):
            return replace(resting, status="failed", last_error=newest.ending.message)
        return replace(
            resting,
            status="finished" if newest.ending.reason == "completed" else "stopped",
            adapter=newest.ending.adapter_path,
        )
    if record is None and newest.time is None:
        return replace(resting, status="stopped")
    if newest.time is None and not alive and _has_result(folder):
        return replace(resting, status="finished")  # its events are lost, the adapter is not: that comes last
    if record is None or not alive:
        error = _why_gone(folder, record.log_offset if record else 0)
        # A process that could not write could not tell either, so the disk is asked.
        if reason := disk.why_not_writable(folder.path):
            return replace(resting, status="failed", last_error=f"{error}; {reason}")
        return replace(resting, status="crashed", last_error=error)
    state = replace(_with_stage(state, newest), process_id=record.process_id)
    if newest.is_stopping or (folder.requests / "stop").exists():
        return replace(state, status="stopping", eta_seconds=None)
    return state


def _has_result(folder: RunFolder) -> bool:
    """Whether the finished adapter lies there, of a run whose events say nothing at all."""
    if next(iterate_backwards(folder.events), None) is not None:
        return False
    try:
        return folder.result(files.load(folder.config)).is_file()
    except (SdloraError, OSError):
        return False


def has_finished(folder: RunFolder) -> bool:
    """Whether the newest process that trained here came to the end and said so, with nothing left to do."""
    for event in iterate_backwards(folder.events):
        if isinstance(event, RunFinished):
            return event.reason == "completed"
        if isinstance(event, RunStarted):
            return False
    return False


def _read_newest(folder: RunFolder, offset: int) -> _Newest:
    found = _Newest()
    for event in iterate_backwards(folder.events, offset):
        if found.time is None:
            found.time = event.time
            found.progress = event if isinstance(event, Progress) and event.done < event.total else None
        match event:
            case RunFinished() | RunFailed():
                if found.ending or found.steps:  # of an earlier process
                    break
                found.ending = event
            case Stopping():
                found.is_stopping = True
            case StepFinished():
                found.steps.append(event)
            case RunStarted():
                break
        if len(found.steps) >= _STEPS_AVERAGED:
            break
    return found


def _figures(folder: RunFolder, newest: _Newest, offset: int) -> RunState:
    """All numbers of a state whose process has not been looked at: "running" once it trains, "starting" before."""
    began, first = _beginning(folder, offset)
    earlier = began or (_beginning(folder, 0)[0] if offset else None)
    step = _step(folder, newest, began)
    steps = newest.steps
    speed = eta = None
    # The first steps are slow: compilers, caches and the disk warm up.
    if began and first and len(steps) >= 2 and step - began.first_step >= MIN_STEPS_FOR_SPEED:
        speed = len(steps) / max(sum(event.seconds for event in steps), 1e-9)
        per_step = (steps[0].time - first.time) / max(steps[0].step - first.step, 1)
        eta = max(0.0, (began.total_steps - step) * per_step)
    return RunState(
        status="running" if began else "starting",
        step=step,
        total_steps=earlier.total_steps if earlier else None,
        loss=sum(event.loss for event in steps) / len(steps) if steps else None,
        memory_gib=steps[0].memory_gib if steps else None,
        steps_per_second=speed,
        eta_seconds=eta,
        started_at=began.time if began else None,
        updated_at=newest.time,
    )


def _beginning(folder: RunFolder, offset: int) -> tuple[RunStarted | None, StepFinished | None]:
    """The first of the newest process's run_started and step_finished events."""
    began: RunStarted | None = None
    for event in iterate_events(folder.events, offset):
        if isinstance(event, RunStarted):
            began = event
        elif isinstance(event, StepFinished):
            return began, event
    return began, None


def _step(folder: RunFolder, newest: _Newest, began: RunStarted | None) -> int:
    if isinstance(newest.ending, RunFinished):
        return newest.ending.step
    if newest.steps:
        return newest.steps[0].step
    if began is not None:
        return began.first_step
    steps = (event.step for event in iterate_backwards(folder.events) if isinstance(event, StepFinished))
    return next(steps, 0)


def _with_stage(state: RunState, newest: _Newest) -> RunState:
    progress = newest.progress
    if progress is None:
        return state
    return replace(state, stage=progress.stage, stage_done=progress.done, stage_total=progress.total)


def _why_gone(folder: RunFolder, log_offset: int) -> str:
    words = last_words(folder.log, offset=log_offset)
    if words:
        return words
    last_line = text_tail(folder.log, 1, offset=log_offset)
    gone = "its process is gone without a word: killed, out of memory, or the machine went down"
    return f"{gone}; the log ends with: {last_line}" if last_line else gone
