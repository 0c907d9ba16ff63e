"""Processes that train one run together, started and watched by the launcher that `torchrun` is made of."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from sdlora.config.train import TrainConfig
from sdlora.constants import INTERRUPTED
from sdlora.errors import ConfigError, LostProcessError, SdloraError, TrainingError
from sdlora.processes import LAUNCHER_VARIABLE, num_processes
from sdlora.runs import checkpoints, restarts
from sdlora.runs.folder import RunFolder
from sdlora.words import as_typed

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_LOST = LostProcessError.exit_code


def check(config: TrainConfig, processes: int) -> None:
    """What can be found wrong before any process is started. Raises the SdloraError of it."""
    from sdlora.training.preflight.checks import check as check_run
    from sdlora.training.shares import check_shares
    from sdlora.training.workers import check_cards

    if num_processes() > 1:
        raise ConfigError(
            "--processes", [f"this is one of {num_processes()} processes of a launcher already: leave it out"]
        )
    check_shares(config.optimization, processes)
    check_cards(config.optimization.device, processes)
    check_run(config)


def train(arguments: Sequence[str], processes: int, restart: int, runs_folder: Path, run: Path | None = None) -> bool:
    """Run `sdlora` with these arguments in so many processes; returns whether a signal asked them to stop.

    restart: how often all are started again after one was lost, going on from the newest checkpoint. run: the run's
    folder where there is one already. A first signal to this process is handed on to all, which save and stop.
    Raises TrainingError that says which process ended, and why, when they could not go on.
    """
    # Each has its share of the processor, as torchrun has it, which takes a single thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # Shared with the launcher, the store of a second try still holds where the processes of the first could be reached,
    # and whoever reads too early calls there (pytorch issue 135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    group = _Group([*arguments], processes, restart)
    try:
        group.run()
    finally:
        del os.environ[LAUNCHER_VARIABLE]
    if group.error is not None and not group.ended_as_asked:
        folder = run or restarts.begun_under(os.getpid(), runs_folder)
        raise _in_words(group.error, processes, folder)
    return group.was_asked


class _Group:
    """The launcher in a thread of its own, so that signals stay with us: it would give the processes half a minute."""

    def __init__(self, arguments: list[str], processes: int, restart: int) -> None:
        self.arguments = arguments
        self.processes = processes
        self.restart = restart
        self.error: ChildFailedError | None = None
        self.was_asked = False
        self._crash: BaseException | None = None
        self._asked: set[int] = set()
        """The processes that were handed a signal."""

    @property
    def ended_as_asked(self) -> bool:
        """Whether what looks like a failure is a signal's doing, that came before there was anything to save."""
        codes = {failure.exitcode for failure in self.error.failures.values()} if self.error else set()
        return self.was_asked and codes <= {INTERRUPTED, _LOST, *(-number for number in (*_SIGNALS, signal.SIGKILL))}

    def run(self) -> None:
        """Until all processes have ended."""
        thread = threading.Thread(target=self._launch, name="launcher", daemon=True)
        is_main = threading.current_thread() is threading.main_thread()
        former: dict[signal.Signals, Any] = (
            {number: signal.signal(number, self._ask) for number in _SIGNALS} if is_main else {}
        )
        try:
            thread.start()
            # In turns: a wait without an end would not let Windows handle a signal.
            while thread.is_alive():
                thread.join(0.2)
                if self.was_asked:
                    # Nothing is to be started again any more.
                    self._signal(None, but=self._asked)
        except BaseException:
            self._signal(None)
            thread.join(10.0)
            raise
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        if self._crash is not None:
            raise self._crash

    def _launch(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        # What it has to say we say ourselves, in one message.
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        told = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
        told.setLevel(logging.ERROR)
        told.propagate = False
        told.handlers = [_RestartTeller(self.processes, self.restart)]
        with tempfile.TemporaryDirectory(prefix="sdlora-launcher-") as folder:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=self.processes,
                run_id=str(uuid.uuid4()),
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=self.restart,
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
            try:
                elastic_launch(config, sys.executable)("-m", "sdlora", *self.arguments)
            except ChildFailedError as error:
                self.error = error
            except BaseException as error:
                self._crash = error

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.was_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal(signal.Signals(number))
        self.was_asked = True

    def _signal(self, number: signal.Signals | None, but: Collection[int] = ()) -> None:
        """To all processes but some; None ends them at once."""
        for child in psutil.Process().children():
            try:
                if number is not None:
                    child.send_signal(number)
                    self._asked.add(child.pid)
                elif child.pid not in but:
                    child.kill()
            except psutil.Error:
                continue


class _RestartTeller(logging.Handler):
    """Says which process was lost where the launcher starts all again: it has no other word for that."""

    def __init__(self, processes: int, restart: int) -> None:
        super().__init__()
        self._processes, self._restart, self._times = processes, restart, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Of the launcher's messages the one on a failed process, whose values are its code, rank and id."""
        if "local_rank" not in record.msg or not isinstance(record.args, tuple) or len(record.args) < 3:
            return
        code, rank = record.args[:2]
        self._times += 1
        if self._times <= self._restart and isinstance(code, int):
            who = "a process was lost" if code == _LOST else f"{_who(rank, self._processes)} {_ended(code)}"
            again = f"all start again from the newest checkpoint (restart {self._times} of {self._restart})"
            print(f"{who}; {again}", file=sys.stderr, flush=True)  # noqa: T201


def _in_words(error: ChildFailedError, processes: int, folder: Path | None) -> SdloraError:
    """What ended the run, in one message: the first process that failed by itself, and where to go on."""
    # Those who lost contact to another one are not the cause; who was killed is rather than who ended with an error.
    alone = {rank: one for rank, one in error.failures.items() if one.exitcode not in (_LOST, -signal.SIGTERM)}
    found = alone or error.failures
    rank = min(found, key=lambda rank: (found[rank].exitcode >= 0, rank))
    failure = found[rank]
    if message := _message(failure):
        told = message if rank == 0 or message.startswith("process ") else f"{_who(rank, processes)}: {message}"
        kind = TrainingError if failure.exitcode == TrainingError.exit_code else SdloraError
        return kind(told)
    told = f"{_who(rank, processes)} {_ended(failure.exitcode)}, and the others were ended"
    if folder is None:
        return TrainingError(f"{told}. No step was made yet")
    newest = checkpoints.newest(RunFolder(folder))
    command = as_typed("sdlora", "resume", folder, "--processes", processes)
    return TrainingError(f"{told}. {f'Step {newest.step} is saved' if newest else 'Nothing is saved yet'}: {command}")


def _who(rank: object, processes: int) -> str:
    return f"process {rank} of {processes} (counted from 0)"


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    why = ", by someone or by the system as memory ran out" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}"


def _message(failure: ProcessFailure) -> str:
    """What a process wrote down as its error; empty for one that could not."""
    message: Any = failure.message
    return str(message.get("message", "")) if isinstance(message, dict) else ""
