"""python -m sdlora, and the console script `sdlora`. Loads little before `program`, where Ctrl-C shows no traceback."""

from __future__ import annotations

import os
import sys

from sdlora.constants import INTERRUPTED


def program() -> None:
    """`main` as a process of its own."""
    try:
        from sdlora.processes import TURN_VARIABLE, seldom_collected, wait_for_go, without_traceback

        with without_traceback(), seldom_collected():
            wait_for_go()
            if TURN_VARIABLE in os.environ:
                from sdlora.launch.jobs import wait_for_turn

                wait_for_turn()
            main()
    except KeyboardInterrupt:  # while that was loaded
        sys.exit(INTERRUPTED)


def main() -> None:
    """Run the command line; an SdloraError becomes its message and exit code, never a traceback."""
    import logging

    from sdlora import disk
    from sdlora.cli import app
    from sdlora.cli.progress import recorded_end
    from sdlora.errors import SdloraError

    # Libraries warn of packages that sdlora does without; what matters to users comes as events
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Threads that spin for long while they wait make a step several times slower when anything else runs beside it.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

    try:
        with recorded_end():
            app()
    except SdloraError as error:
        _end(str(error), error.exit_code, is_told=error.is_told)
    except BrokenPipeError:  # `sdlora explain | head`: who read has seen enough
        # Or Python flushes the broken pipe once more as it ends, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _end(disk.explain(error), 2)
    except ImportError as error:
        _end(f"{error}. A package is missing or broken: `sdlora doctor` says how to install it", 2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except MemoryError:
        _end("this machine has too little memory left for it: close other programs, or allow this one more", 2)
    except Exception as error:
        circle = disk.circle_of_links(error) if isinstance(error, RuntimeError) else None
        if circle:
            _end(disk.explain(circle), 2)
        _end(_unexpected(error), 1)


def _end(message: str, exit_code: int, *, is_told: bool = False) -> None:
    """End with a message on the terminal; of processes that train together one alone shows it there."""
    from sdlora.processes import LAUNCHER_VARIABLE, is_main_process

    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if reply:
        _reply(reply, message)
    is_shown = is_main_process() and LAUNCHER_VARIABLE not in os.environ
    # Without a launcher that shows what others write down, each must say itself what nobody else says.
    if is_shown or not (reply or is_told or is_main_process()):
        who = "" if is_main_process() else f"process {os.environ['RANK']}: "
        print(f"error: {who}{message}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_code)


def _reply(path: str, message: str) -> None:
    """Tell the launcher, in the form that torchrun shows in its own report."""
    import json
    import time
    from contextlib import suppress
    from pathlib import Path

    more = {"py_callstack": message, "timestamp": str(int(time.time()))}
    with suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": more}}), encoding="utf-8")


def _unexpected(error: Exception) -> str:
    """One line for a person, the traceback in a file for whoever fixes it."""
    import tempfile
    import traceback
    from pathlib import Path

    words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    try:
        descriptor, path = tempfile.mkstemp(prefix="sdlora-error-", suffix=".txt")
        with Path(path).open("w", encoding="utf-8", errors="replace") as file:
            traceback.print_exception(error, file=file)
        os.close(descriptor)
    except OSError:
        return words
    return f"{words}\nThis should not happen. What led to it stands in {path}; please report it with that file"


if __name__ == "__main__":
    program()
