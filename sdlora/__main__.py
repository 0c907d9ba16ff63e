"""python -m sdlora, and the console script `sdlora`."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path

from sdlora import disk
from sdlora.errors import SdloraError


def main() -> None:
    """Run the command line; an SdloraError becomes its message and exit code, never a traceback."""
    from sdlora.cli import app
    from sdlora.cli.app import INTERRUPTED
    from sdlora.cli.progress import recorded_end

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
        _end(str(error), error.exit_code)
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
        _end(_unexpected(error), 1)


def _end(message: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_code)


def _unexpected(error: Exception) -> str:
    """One line for a person, the traceback in a file for whoever fixes it."""
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
    main()
