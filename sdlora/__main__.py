"""python -m sdlora, and the console script `sdlora`."""

from __future__ import annotations

import sys

from sdlora.errors import SdloraError

INTERRUPTED = 130


def main() -> None:
    """Run the command line; an SdloraError becomes its message and exit code, never a traceback."""
    from sdlora.cli import app

    try:
        app()
    except SdloraError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
