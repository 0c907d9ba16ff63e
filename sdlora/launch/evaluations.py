"""Evaluations of runs in the background: found again after a restart by the run, and what came of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdlora.adapters.files.container import content_hash
from sdlora.config import files
from sdlora.config.evaluate import EvaluateConfig
from sdlora.errors import AdapterError, ConfigError, ModelError, RunError
from sdlora.evaluation import promotion
from sdlora.evaluation.report import Evaluation, report_file
from sdlora.file_memory import Stamp, stamp_of, while_unchanged
from sdlora.launch.jobs import JobHandle, JobState, list_jobs, start_job
from sdlora.launch.runs import RunHandle

_SOURCE = "the evaluation's settings"


class Evaluations:
    """The newest evaluation of each run. Safe from several threads."""

    def __init__(self, jobs: Path) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._newest: dict[str, JobHandle] | None = None
        self._over: dict[JobHandle, JobState] = {}

    def state(self, run: RunHandle) -> JobState | None:
        """How the run's newest evaluation that was begun in the background stands; None without one."""
        with self._lock:
            handle = self._known().get(str(run.folder))
        if handle is None:
            return None
        state = self._state(handle)
        # What ended before the run was made was about another one of that name.
        return state if state.is_active or state.started_at >= run.created_at else None

    def stamp(self) -> tuple[object, ...]:
        """Changes when an evaluation does, of whatever run."""
        with self._lock:
            known = list(self._known().values())
        states = [(handle.name, self._state(handle)) for handle in known]
        return tuple((name, state.status, state.stage, state.done) for name, state in states)

    def start(self, run: RunHandle, overrides: Sequence[str] = (), features: str | None = None) -> None:
        """Begin to evaluate a run. overrides: settings as on the command line, `num_seeds=8`.

        While others are evaluated it waits for its turn. Raises ConfigError for wrong settings, and for a run that
        trains, waits to, or is being evaluated.
        """
        options = checked(overrides, features)
        state = run.state()
        if state.is_active or state.status == "queued":
            raise ConfigError(run.name, [f"it is {state.status}: evaluate it when it has stopped or is finished"])
        with self._lock:
            before = self._active()
            if str(run.folder) in before:
                raise ConfigError(run.name, ["it is being evaluated: wait for that, or cancel it"])
            handle = start_job(["evaluate", str(run.folder), *options], self._jobs, list(before.values()))
            self._known()[str(run.folder)] = handle

    def ahead(self, run: RunHandle) -> list[str]:
        """The runs whose evaluation comes before this one's."""
        with self._lock:
            active = self._active()
        own = active.get(str(run.folder))
        return [Path(folder).name for folder, job in active.items() if own and job.created_at < own.created_at]

    def wait(self, run: RunHandle) -> JobState:
        """How the evaluation that was begun last stands once it is over."""
        with self._lock:
            handle = self._known()[str(run.folder)]
        return handle.wait()

    def cancel(self, run: RunHandle) -> None:
        """End the run's evaluation; the images that it has generated stay."""
        with self._lock:
            handle = self._known().get(str(run.folder))
        if handle is not None:
            handle.cancel()

    def promote(self, run: RunHandle, label: str) -> str:
        """Make an evaluated checkpoint the run's result; returns what was done in words. Raises RunError."""
        state = self.state(run)
        if state is not None and state.is_active:
            raise RunError(f"{run.name} is being evaluated: promote a checkpoint once that is done, or cancel it")
        return promotion.promote(run.folder, label).promoted or ""

    def _active(self) -> dict[str, JobHandle]:
        return {folder: handle for folder, handle in self._known().items() if self._state(handle).is_active}

    def _known(self) -> dict[str, JobHandle]:
        if self._newest is None:
            # From the oldest on, so that the newest of each run is what stays.
            jobs = [(job, job.arguments) for job in reversed(list_jobs(self._jobs))]
            self._newest = {words[1]: job for job, words in jobs if len(words) > 1 and words[0] == "evaluate"}
        return self._newest

    def _state(self, handle: JobHandle) -> JobState:
        """The state; of a job that is over it can't change any more."""
        if (known := self._over.get(handle)) is not None:
            return known
        state = handle.state()
        if not state.is_active:
            self._over[handle] = state
        return state


def checked(overrides: Sequence[str], features: str | None = None) -> list[str]:
    """The options of `sdlora evaluate` that give these settings. Raises ConfigError listing every problem."""
    values: dict[str, Any] = {}
    files.override(values, overrides, _SOURCE, EvaluateConfig)
    if features is not None:
        values["features"] = features
    files.validate(values, _SOURCE, EvaluateConfig)
    options = [part for one in overrides for part in ("--set", one)]
    # In one word: a value that begins with a dash would be taken for an option.
    return options if features is None else [*options, f"--features={features}"]


def report_stamp(run: RunHandle) -> Stamp | None:
    """Changes when the newest report on a run does; None without one."""
    return stamp_of(report_file(run.folder))


def result_label(run: RunHandle, found: Evaluation) -> str | None:
    """Which evaluated checkpoint the run's result is now; None when it is none of them, or there is no result."""
    content = _content(run.files.adapter(run.config().name))
    return next((one.label for one in found.checkpoints if content and one.content == content), None)


@while_unchanged(most=100)
def _content(path: Path) -> str | None:
    try:
        return content_hash(path)
    except (AdapterError, ModelError, OSError):
        return None
