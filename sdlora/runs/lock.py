"""One trainer a run folder: the lock, and the record of who holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from filelock import FileLock, Timeout

from sdlora.errors import RunError
from sdlora.processes import Heartbeat, ProcessRecord
from sdlora.runs.folder import RunFolder
from sdlora.words import as_typed

_WAIT_SECONDS = 2.0


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Inside, this process alone trains in the folder and its record says so. Raises RunError if another one does.

    The system lets go of the lock when the process ends, however it ends. The record stays: it tells whose events
    are the last.
    """
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=_WAIT_SECONDS)
    except Timeout:
        other = ProcessRecord.read(folder.process)
        by = f"process {other.process_id} on {other.place.split()[0]}" if other else "another process"
        raise RunError(
            f"{folder.path} is being trained already by {by}. `{as_typed('sdlora', 'stop', folder.path)}` asks it to"
            " save and stop."
        ) from None
    try:
        # Only what was asked before this process began: a stop that was clicked while it loaded still counts.
        folder.discard_requests(made_before=psutil.Process().create_time())
        ProcessRecord.of(os.getpid(), events=folder.events, log=folder.log).write(folder.process)
        with Heartbeat(folder.process):
            yield
    finally:
        lock.release()
