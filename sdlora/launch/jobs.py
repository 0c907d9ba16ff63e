"""Any sdlora command as a detached job with progress, log and result: captioning, mixing, checking, a dry run.

A job has a folder of its own with job.json (what was asked for), process.json, events.jsonl, log.txt and output.txt
(what the command printed). How it stands is found out from those, as with runs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sdlora import atomic
from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.constants import MIB
from sdlora.disk import is_file
from sdlora.errors import ConfigError, RunError
from sdlora.events import CommandFinished, Progress
from sdlora.launch.detached import SDLORA, end, spawn
from sdlora.processes import TURN_VARIABLE, ProcessRecord
from sdlora.runs.event_log import iterate_backwards, last_words, text_tail
from sdlora.sinks.jsonl import EVENTS_VARIABLE, JsonlSink

JobStatus = Literal["running", "finished", "failed", "cancelled", "crashed"]
"""finished: the command did its work; its exit code may be 1, as of a check that found errors. failed: it ended with an
error that it told. crashed: its process is gone without a word."""

KILL_GRACE_SECONDS = 3.0
_LOOK_SECONDS = 0.2
_TURN_SECONDS = 1.0
_MAX_OUTPUT_BYTES = 64 * MIB


@dataclass(frozen=True)
class JobState:
    """How a job stands at one moment."""

    status: JobStatus
    stage: str | None = None
    """What it is doing, with `done` of `total`; None before it says so."""
    done: int = 0
    total: int = 0
    eta_seconds: float | None = None
    """Remaining time of the stage, None before a tenth of it is done."""
    exit_code: int | None = None
    error: str | None = None
    """failed, crashed: what went wrong."""
    started_at: float = 0.0
    """Seconds since the epoch."""
    ended_at: float | None = None
    process_id: int | None = None
    """Of the living process."""

    @property
    def is_active(self) -> bool:
        """Whether the command still runs."""
        return self.status == "running"


@dataclass(frozen=True)
class JobHandle:
    """One job by its folder. Cheap to make; everything is read from disk and the process when asked for."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def arguments(self) -> list[str]:
        """The command's arguments, after `sdlora`."""
        return [str(part) for part in self._about().get("arguments", [])]

    @property
    def created_at(self) -> float:
        """Seconds since the epoch."""
        return float(self._about().get("created_at", 0.0))

    def command(self) -> str:
        """The same on the command line."""
        return shlex.join(["sdlora", *self.arguments])

    def state(self) -> JobState:
        """How the job stands now, found out from its process and its events each time it is asked for."""
        # In this order: what a process writes last is written before it is gone.
        record = ProcessRecord.read(self._process)
        alive = record is not None and record.is_alive(self._process)
        ending, stage, eta = self._newest_events()
        state = JobState(
            "running",
            stage=stage.stage if stage else None,
            done=stage.done if stage else 0,
            total=stage.total if stage else 0,
            started_at=self.created_at,
        )
        return self._with_status(state, record, alive, ending, eta)

    def wait(self) -> JobState:
        """How the job stands once it is over."""
        while (state := self.state()).is_active:
            time.sleep(_LOOK_SECONDS)
        return state

    def cancel(self, grace_seconds: float = KILL_GRACE_SECONDS) -> JobState:
        """End the job: asked first, killed after `grace_seconds`. What it has finished stays."""
        record = ProcessRecord.read(self._process)
        if record is not None and record.is_alive(self._process):
            self._cancelled.touch()
            # As Ctrl-C, so that the command tidies up.
            if not end(record, self._process, grace_seconds, signal.SIGINT):
                raise RunError(f"{self.name}: process {record.process_id} can't be ended from here. End it there.")
        return self.state()

    def output(self) -> str:
        """What the command printed so far."""
        with self._output.open("rb") as file:
            return file.read(_MAX_OUTPUT_BYTES).decode("utf-8", errors="replace")

    def result(self) -> Any:
        """What a command with --json printed, as plain values. Raises RunError when there is none (yet)."""
        state = self.state()
        if state.status != "finished":
            raise RunError(f"{self.name} has no result: it is {state.status}. {state.error or ''}".rstrip())
        try:
            return json.loads(self.output())
        except ValueError:
            raise RunError(f"{self.name} printed no JSON: `{self.command()}`") from None

    def log_tail(self, lines: int = 200) -> str:
        """The last lines of what the command wrote to standard error."""
        return text_tail(self._log, lines)

    def delete(self) -> None:
        """Remove the job's folder. Raises RunError while it runs."""
        if self.state().is_active:
            raise RunError(f"{self.name} is running: cancel it before you delete it.")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _process(self) -> Path:
        return self.folder / "process.json"

    @property
    def _events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def _log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def _output(self) -> Path:
        return self.folder / "output.txt"

    @property
    def _cancelled(self) -> Path:
        return self.folder / "cancelled"

    def _about(self) -> dict[str, Any]:
        try:
            about = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}

    def _newest_events(self) -> tuple[CommandFinished | None, Progress | None, float | None]:
        """How the command ended, the newest progress, and the remaining seconds of its stage."""
        ending: CommandFinished | None = None
        newest: Progress | None = None
        oldest: Progress | None = None
        # From the end: the newest events tell all, and a long job has written thousands.
        for event in iterate_backwards(self._events):
            if isinstance(event, CommandFinished):
                ending = event
            elif isinstance(event, Progress):
                newest = newest or event
                if event.stage != newest.stage or event.done > newest.done:
                    break
                oldest = event
        if newest is None or oldest is None or newest.done <= oldest.done or newest.done < newest.total / 10:
            return ending, newest, None
        per_item = (newest.time - oldest.time) / (newest.done - oldest.done)
        return ending, newest, max(0.0, (newest.total - newest.done) * per_item)

    def _with_status(
        self,
        state: JobState,
        record: ProcessRecord | None,
        alive: bool,
        ending: CommandFinished | None,
        eta_seconds: float | None,
    ) -> JobState:
        if alive and ending is None and record is not None:
            return replace(state, eta_seconds=eta_seconds, process_id=record.process_id)
        # A command that was done before the signal came has finished, not been cancelled.
        if self._cancelled.exists() and (ending is None or ending.error):
            return replace(state, status="cancelled", ended_at=_modified(self._cancelled))
        if ending is not None:
            status: JobStatus = "failed" if ending.error else "finished"
            return replace(
                state, status=status, exit_code=ending.exit_code, error=self._error(ending), ended_at=ending.time
            )
        words = last_words(self._log) or text_tail(self._log, 1)
        gone = "its process is gone without a word: killed, out of memory, or the machine went down"
        return replace(state, status="crashed", error=f"{gone}; the log ends with: {words}" if words else gone)

    def _error(self, ending: CommandFinished) -> str | None:
        """The command's own message; of a wrong command line, which parses no further, what stands in the log."""
        if ending.error and ending.error.startswith("exit code"):
            return text_tail(self._log, 12) or ending.error
        return ending.error


@dataclass(frozen=True)
class JobProgress:
    """How far a job is, for a progress bar."""

    words: str
    is_active: bool
    percent: int | None = None
    """None when it is over, or nobody knows."""


def progress(words: str, state: JobState) -> JobProgress:
    """A job's state in words, which begin with its own: `Captioning: 3 of 10, about 20 s left`."""
    if state.is_active:
        count = f" {state.done} of {state.total}" if state.total else " ..."
        remaining = f", about {_duration(state.eta_seconds)} left" if state.eta_seconds is not None else ""
        percent = round(100 * state.done / state.total) if state.total else None
        return JobProgress(f"{words}:{count}{remaining}", True, percent)
    endings = {
        "finished": "done",
        "cancelled": "cancelled; what was written stays",
        "failed": "failed",
        "crashed": "crashed",
    }
    error = f": {state.error}" if state.error else ""
    return JobProgress(f"{words} {endings[state.status]}{error}", False)


def _duration(seconds: float) -> str:
    return f"{round(seconds)} s" if seconds < 90 else f"{round(seconds / 60)} min"


def start_job(arguments: Sequence[str], jobs_folder: Path, after: Sequence[JobHandle] = ()) -> JobHandle:
    """Start `sdlora ARGUMENTS...` in a detached process with a new folder of its own in `jobs_folder`.

    after: jobs whose end it waits for first. The process itself waits, so that its turn comes without this one, too.
    Raises ConfigError for an argument that no process can be given.
    """
    if unfit := [argument for argument in arguments if "\0" in argument]:
        raise ConfigError("the call", [f"{argument[:60]!r} holds a NUL, which no name has" for argument in unfit])
    return _start(_new_folder(jobs_folder, arguments), arguments, after)


def wait_for_turn() -> None:
    """In a job's process: wait until the jobs that come before it are over, and say so meanwhile."""
    before = [JobHandle(Path(folder)) for folder in os.environ.pop(TURN_VARIABLE, "").split(os.pathsep) if folder]
    sink = JsonlSink(Path(os.environ[EVENTS_VARIABLE]))
    sink.emit(Progress(stage="waiting for its turn", done=0, total=0))
    while any(job.state().is_active for job in before):
        time.sleep(_TURN_SECONDS)
    sink.emit(Progress(stage="starting", done=0, total=0))
    sink.close()


def start_dry_run(config: TrainConfig, jobs_folder: Path) -> JobHandle:
    """Find out what a run would do, or all that is wrong with it; `result()` fits `DryRun.model_validate`."""
    folder = _new_folder(jobs_folder, ["train", "dry run"])
    preset = folder / "config.yaml"
    atomic.write_text(preset, files.dump(config))
    return _start(folder, ["train", "--preset", str(preset), "--dry-run", "--json"])


def list_jobs(jobs_folder: Path) -> list[JobHandle]:
    """All jobs in a folder, newest first."""
    if not jobs_folder.is_dir():
        return []
    handles = [JobHandle(path) for path in jobs_folder.iterdir() if is_file(path / "job.json")]
    return sorted(handles, key=lambda handle: (handle.created_at, handle.name), reverse=True)


def _start(folder: Path, arguments: Sequence[str], after: Sequence[JobHandle] = ()) -> JobHandle:
    about = {"arguments": list(arguments), "created_at": time.time()}
    handle = JobHandle(folder)

    def record(process_id: int) -> None:
        ProcessRecord.of(process_id).write(handle._process)
        # Last: whoever lists jobs takes a folder with this file for one.
        atomic.write_json(folder / "job.json", about, indent=2)

    spawn(
        [*SDLORA, *arguments],
        record=record,
        log=handle._log,
        output=handle._output,
        environment={
            EVENTS_VARIABLE: str(handle._events),
            **({TURN_VARIABLE: os.pathsep.join(str(job.folder) for job in after)} if after else {}),
        },
    )
    return handle


def _new_folder(jobs_folder: Path, arguments: Sequence[str]) -> Path:
    jobs_folder = jobs_folder.resolve()
    jobs_folder.mkdir(parents=True, exist_ok=True)
    words = "-".join(word for word in arguments[:2] if re.fullmatch(r"[\w -]+", word)).replace(" ", "-")
    return atomic.create_folder(jobs_folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{words or 'job'}")


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
