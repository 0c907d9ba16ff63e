"""What `sdlora train --dry-run` finds out about a draft, in a process of its own, once a person stops typing."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import RunError
from sdlora.launch.jobs import JobHandle, start_dry_run
from sdlora.training.preflight.dry_run import DryRun, Problem

QUIET_SECONDS = 1.5
_KEPT = 16
_CANCEL_GRACE_SECONDS = 0.5

Stage = Literal["idle", "waiting", "running", "done"]


@dataclass(frozen=True)
class Finding:
    """How far the dry run of a draft has come, and what it found."""

    stage: Stage
    found: DryRun | None = None


@dataclass
class _Asked:
    config: TrainConfig
    key: str
    since: float


class DryRuns:
    """Runs one draft dry at a time, the newest; remembers the last few findings. Safe from several threads."""

    def __init__(self, jobs_folder: Path) -> None:
        self._jobs_folder = jobs_folder
        self._lock = threading.Lock()
        self._asked: _Asked | None = None
        self._job: tuple[str, JobHandle] | None = None
        self._found: OrderedDict[str, DryRun] = OrderedDict()

    def ask(self, config: TrainConfig | None, files_stamp: int = 0) -> None:
        """Say which draft is of interest now; None for one that is no configuration yet.

        files_stamp: changes with the files that the draft is about, which are looked at anew then.
        """
        key = "" if config is None else _key(config, files_stamp)
        with self._lock:
            if config is None:
                self._asked = None
            elif self._asked is None or self._asked.key != key:
                self._asked = _Asked(config, key, time.monotonic())

    @property
    def is_busy(self) -> bool:
        """Whether the draft of interest has still to be answered."""
        with self._lock:
            return self._asked is not None and self._asked.key not in self._found

    def find(self, config: TrainConfig | None, files_stamp: int = 0) -> Finding:
        """Move things on and say what is known about a draft. Call it again and again."""
        with self._lock:
            self._collect()
            self._begin()
            if config is None:
                return Finding("idle")
            key = _key(config, files_stamp)
            if key in self._found:
                return Finding("done", self._found[key])
            if self._job is not None and self._job[0] == key:
                return Finding("running")
            return Finding("waiting" if self._asked is not None and self._asked.key == key else "idle")

    def _begin(self) -> None:
        """Start what was asked for, if its draft has been left alone for a moment."""
        asked = self._asked
        if asked is None or asked.key in self._found or time.monotonic() - asked.since < QUIET_SECONDS:
            return
        if self._job is not None:
            if self._job[0] == asked.key:
                return
            job, self._job = self._job[1], None
            # In a thread, as ending a process takes a moment and others wait for the lock.
            threading.Thread(target=_abandon, args=(job,), daemon=True).start()
        self._job = (asked.key, start_dry_run(asked.config, self._jobs_folder))

    def _collect(self) -> None:
        if self._job is None:
            return
        key, job = self._job
        if job.state().is_active:
            return
        self._job = None
        self._found[key] = _result(job)
        while len(self._found) > _KEPT:
            self._found.popitem(last=False)
        job.delete()


def _key(config: TrainConfig, files_stamp: int) -> str:
    """Drafts that differ in name only need one dry run."""
    return f"{files.dump(config.model_copy(update={'name': 'draft'}), only_changes=True)}{files_stamp}"


def _result(job: JobHandle) -> DryRun:
    try:
        return DryRun.model_validate(job.result())
    except (RunError, ValidationError) as error:
        told = job.state().error or str(error)
        return DryRun(problems=[Problem(setting=None, message=f"the check of these settings failed: {told}")])


def _abandon(job: JobHandle) -> None:
    try:
        job.cancel(_CANCEL_GRACE_SECONDS)
        job.delete()
    except RunError:
        return  # it ends by itself; its folder is left
