"""Which process does a piece of work, written to a file by itself, and whether that process still lives.

Whether something runs is never stored: it is found out from the process each time it is asked for. A process is known
by its id and the moment it began, since ids are given out again.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

import psutil

from sdlora import atomic
from sdlora.constants import INTERRUPTED
from sdlora.errors import ConfigError

# Twelve beats to a silence: a network disk, or a machine that swaps, may well delay some.
BEAT_SECONDS = 5.0
LAUNCHER_VARIABLE = "SDLORA_LAUNCHER"
"""Set by `sdlora train --processes` for the processes it starts: it says itself how they ended."""
GO_VARIABLE = "SDLORA_WAITS"
"""Set by `launch.detached.spawn`: the command begins when a line comes in on its standard input."""
TURN_VARIABLE = "SDLORA_AFTER"
"""Names, for a job's process, the folders of the jobs that come before it."""
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OF_LAUNCHERS = ("TORCHELASTIC_", "GROUP_", "ROLE_", "ACCELERATE_", "SDLORA_LAUNCHER")
SILENT_SECONDS = 60.0
"""A process elsewhere whose record was not touched for so long counts as gone."""
_ZOMBIE_STATES = "ZX"
_ON_LINUX = platform.system() == "Linux"
_PROC = Path("/proc")


@contextlib.contextmanager
def without_traceback() -> Iterator[None]:
    """The whole of a program: Ctrl-C ends it without a traceback, while it loads and while it takes itself apart too.

    For what is inside nothing changes: a training saves as ever. From a thread of a larger program it can't be used.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # pressed again: it is gone at once, as nothing is left to save


@contextlib.contextmanager
def seldom_collected() -> Iterator[None]:
    """The whole of a program that loads torch: nothing of that is garbage, so Python need not look for any there.

    It would walk through all of it time and again while it grows, and once more at the end: a third of what a short
    command takes. New things are looked through as often as ever.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1000)
    try:
        yield
    finally:
        gc.freeze()


def wait_for_go() -> None:
    """Begin only when whoever started this process has written it down; if that is gone before, end without a word.

    Otherwise a command could be at work of which nobody knows, and be started once more.
    """
    if os.environ.pop(GO_VARIABLE, None) and not sys.stdin.buffer.readline():
        sys.exit(INTERRUPTED)


@dataclass(frozen=True)
class ProcessRecord:
    """One process as it was when it began a piece of work. Process ids mean something in their own `place` only."""

    process_id: int
    started: str
    """When the process began, in whatever unit the system counts reliably; only ever compared."""
    place: str
    """Machine, boot and container, so that an id of another one is not mistaken for one of ours."""
    events_offset: int = 0
    """Size of the event log when the work began: what stands before is of earlier processes."""
    log_offset: int = 0
    """The same for the text log."""

    @classmethod
    def of(cls, process_id: int, *, events: Path | None = None, log: Path | None = None) -> ProcessRecord:
        """The record of a process that is alive now, about to write to these files."""
        # The offsets tell what this process wrote: what stands before in the logs is of earlier ones.
        return cls(process_id, start_mark(process_id) or "", here(), _size(events), _size(log))

    def with_process(self, process_id: int) -> ProcessRecord:
        """The same offsets for a process that was started after they were taken."""
        return replace(self, process_id=process_id, started=start_mark(process_id) or "")

    @classmethod
    def read(cls, path: Path) -> ProcessRecord | None:
        """The record in a file, None if there is none that can be understood."""
        try:
            record = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        # A damaged one must not pass for a process elsewhere, which nobody here can look after.
        numbers = (record.process_id, record.events_offset, record.log_offset)
        is_sound = all(type(number) is int and number >= 0 for number in numbers) and isinstance(record.place, str)
        return record if is_sound and record.place else None

    def write(self, path: Path) -> None:
        """Write the record in one go."""
        atomic.write_json(path, asdict(self))

    def is_here(self) -> bool:
        """Whether this process could be seen and signalled from ours if it lives."""
        return self.place == here()

    def is_alive(self, path: Path) -> bool:
        """Whether this process still runs; of one in another place, whether it touched its record (`path`) lately."""
        if self.is_here():
            # Ids are given out again: only with the time of its start is it the same process.
            return bool(self.started) and start_mark(self.process_id) == self.started
        try:
            return time.time() - path.stat().st_mtime < SILENT_SECONDS
        except OSError:
            return False


def is_main_process() -> bool:
    """Whether this process, of those that a launcher started together, writes files and events."""
    # A rank alone, which clusters set for other programs, makes nobody one of several. This must not raise: errors are
    # told by whoever it names.
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def num_processes(variable: str = "WORLD_SIZE") -> int:
    """How many a launcher (torchrun, accelerate, `sdlora train --processes`) started together, this one among them.

    variable: LOCAL_WORLD_SIZE for those of this machine. Raises ConfigError where it holds no number.
    """
    told = os.environ.get(variable, "1")
    if not told.isdecimal() or int(told) < 1:
        wrong = f"{variable}={told}: a launcher sets it to its number of processes; unset it where there is none"
        raise ConfigError("the environment", [wrong])
    return int(told)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process of its own, that is none of those that train together."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _OF_A_LAUNCHER and not name.startswith(_OF_LAUNCHERS)
    }


class Heartbeat:
    """Inside the `with` block, touches a file every few seconds, for those who can't see this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                os.utime(self._path)
            except OSError:  # the folder was moved away, or its disk is not there for a moment
                continue


def start_mark(process_id: int) -> str | None:
    """When a living process began, None if there is none of this id or it is a zombie.

    On Linux counted in clock ticks since boot: the time of day that psutil computes moves when the clock is set, as
    it is each time a laptop or WSL wakes up.
    """
    if _ON_LINUX:
        try:
            line = (_PROC / str(process_id) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = line.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
        return None if fields[0] in _ZOMBIE_STATES else fields[19]
    try:
        process = psutil.Process(process_id)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def here() -> str:
    """Where process ids of this process mean the same: host name, and on Linux the boot and the pid namespace."""
    parts = [platform.node()]
    if _ON_LINUX:
        try:
            parts.append((_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
            parts.append(str((_PROC / "self/ns/pid").readlink()))
        except OSError:
            parts.append("in a sandbox that hides them")
    return " ".join(parts)


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path else 0
    except OSError:
        return 0
