"""python -m sdlora, and the console script `sdlora`."""

from __future__ import annotations

import logging
import sys

from sdlora.errors import SdloraError

INTERRUPTED = 130

_CHATTY_LIBRARIES = ("bitsandbytes", "transformers", "diffusers", "torch.distributed")
"""They warn of packages that sdlora does without; what matters to users comes as events."""


def main() -> None:
    """Run the command line; an SdloraError becomes its message and exit code, never a traceback."""
    from sdlora.cli import app

    for name in _CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)

    try:
        app()
    except SdloraError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
