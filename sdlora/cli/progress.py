"""How far a command has come: a bar on the terminal, and events for who started it.

With the environment variable SDLORA_EVENTS=FILE a command appends its progress, and in the end how it ended, to that
file as the JSON lines of `sdlora.events`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdlora import disk
from sdlora.constants import INTERRUPTED
from sdlora.errors import SdloraError
from sdlora.events import CommandFinished, Event, EventSink, EventStream, Progress
from sdlora.processes import LAUNCHER_VARIABLE, is_main_process
from sdlora.sinks.jsonl import EVENTS_VARIABLE, JsonlSink

_SECONDS_BETWEEN_EVENTS = 0.2


@contextmanager
def progress(stage: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, gone when the work is done; gives what is to be called with (done, total)."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    terminal = Console(stderr=True, emoji=False)
    path = os.environ.get(EVENTS_VARIABLE)
    sink = JsonlSink(Path(path)) if path else None
    told = 0.0
    try:
        with Bar(console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
            task = bar.add_task(stage, total=None)

            def advance(done: int, total: int) -> None:
                nonlocal told
                bar.update(task, completed=done, total=total)
                now = time.monotonic()
                if sink is not None and (done >= total or now - told >= _SECONDS_BETWEEN_EVENTS):
                    told = now
                    sink.emit(Progress(stage=stage, done=done, total=total))

            yield advance
    finally:
        if sink is not None:
            sink.close()


@contextmanager
def event_stream() -> Iterator[EventStream]:
    """A stream of events to the terminal and to who asked for them, for commands that tell more than one stage."""
    from sdlora.sinks.terminal import TerminalSink

    sinks: list[EventSink] = [TerminalSink()]
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        sinks.append(JsonlSink(Path(path)))
    stream = EventStream(sinks)
    try:
        yield stream
    finally:
        stream.close()


@contextmanager
def recorded_end() -> Iterator[None]:
    """Around a whole command: tells who asked for events with which exit code and error it ended."""
    try:
        yield
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        # 1 is an answer, as of a check that found errors: what it says is in the output.
        _tell(CommandFinished(exit_code=code, error=None if code in (0, 1) else _own_words(error)))
        raise
    except SdloraError as error:
        _tell(CommandFinished(exit_code=error.exit_code, error=str(error)))
        raise
    except KeyboardInterrupt:
        _tell(CommandFinished(exit_code=INTERRUPTED, error="interrupted"))
        raise
    except OSError as error:
        _tell(CommandFinished(exit_code=2, error=disk.explain(error)))
        raise
    except BaseException as error:
        _tell(CommandFinished(exit_code=1, error=f"{type(error).__name__}: {error}"))
        raise
    else:
        _tell(CommandFinished(exit_code=0, error=None))


def _own_words(error: SystemExit) -> str:
    return error.code if isinstance(error.code, str) else f"exit code {error.code}"


def _tell(event: Event) -> None:
    path = os.environ.get(EVENTS_VARIABLE)
    # Of processes that train together one tells: their launcher if it is ours, or the main one.
    if path and is_main_process() and LAUNCHER_VARIABLE not in os.environ:
        sink = JsonlSink(Path(path))
        sink.emit(event)
        sink.close()
