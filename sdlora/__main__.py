"""python -m sdlora, and the console script `sdlora`."""

from __future__ import annotations

import logging
import os
import sys

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
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
