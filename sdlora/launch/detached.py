"""sdlora commands as processes that outlive the one that starts them, and how to end them for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from sdlora.processes import GO_VARIABLE, ProcessRecord, without_launcher
from sdlora.sinks.jsonl import EVENTS_VARIABLE

SDLORA = (sys.executable, "-m", "sdlora")

# Keep Ctrl-C in the terminal of this process, and its end, from the child.
OWN_SESSION = sys.platform != "win32"
if sys.platform == "win32":
    CREATION_FLAGS = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
else:
    CREATION_FLAGS = 0


def spawn(
    command: Sequence[str],
    *,
    record: Callable[[int], object],
    log: Path,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start an sdlora command in a session of its own; returns its process id at once.

    record: writes down the process id it is given. The command begins after that; it never does when `record` raises,
    or when this process is gone first. What it writes to standard error is appended to `log`, standard output too
    unless `output` is given. Ctrl-C in the terminal of this process, and its end, don't reach it.
    """
    # The events of whoever starts this command, itself a job perhaps, are not those of the child.
    inherited = {name: value for name, value in without_launcher(os.environ).items() if name != EVENTS_VARIABLE}
    # With the fault handler a crash in native code leaves a trace in the log, which `last_words` finds.
    settings = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "PYTHONIOENCODING": "utf-8", GO_VARIABLE: "1"}
    with log.open("ab") as log_file, (output or log).open("ab") as output_file:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=output_file,
            stderr=log_file,
            env={**inherited, **settings, **(environment or {})},
            start_new_session=OWN_SESSION,
            creationflags=CREATION_FLAGS,
        )
    # Someone has to wait for it, or it stays a zombie for as long as this process lives.
    threading.Thread(target=child.wait, name=f"wait for {child.pid}", daemon=True).start()
    assert child.stdin is not None
    try:
        record(child.pid)
        child.stdin.write(b"\n")  # see `processes.wait_for_go`
    finally:
        with suppress(OSError):  # it has ended already
            child.stdin.close()
    return child.pid


def end(record: ProcessRecord, path: Path, grace_seconds: float, ask: signal.Signals = signal.SIGTERM) -> bool:
    """End a recorded process and those it started: asked by a signal first, killed after `grace_seconds`.

    Returns whether it is gone. Does nothing to a process that isn't the recorded one, nor to one of another machine or
    container. `path` is the record's file.
    """
    if not record.is_here() or not record.is_alive(path):
        return not record.is_alive(path)
    try:
        process = psutil.Process(record.process_id)
        # Asked while the parent lives: afterwards nobody can tell which were its children.
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return not record.is_alive(path)
    with suppress(psutil.Error):
        if sys.platform == "win32":
            process.terminate()
        else:
            process.send_signal(ask)
    _, living = psutil.wait_procs(family, timeout=grace_seconds)
    if process in living:
        _kill_group(record.process_id)
    for each in living:
        with suppress(psutil.Error):  # psutil refuses when the id belongs to another process by now
            each.kill()
    psutil.wait_procs(living, timeout=grace_seconds)
    return not record.is_alive(path)


def _kill_group(process_id: int) -> None:
    """Kill what else is in the session that `spawn` gave to a process, a group of its own."""
    if sys.platform == "win32":
        return
    with suppress(ProcessLookupError, PermissionError):
        if os.getpgid(process_id) == process_id:
            os.killpg(process_id, signal.SIGKILL)
