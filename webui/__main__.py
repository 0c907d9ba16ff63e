"""`python -m webui`: check the arguments, print the address, serve the page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DEFAULT_PORT = 7860
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's values. Exits with code 2 where they don't make sense together."""
    parser = argparse.ArgumentParser(prog="python -m webui", description="sdlora in the browser.")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind; others than this machine need --auth")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this name and password")
    parser.add_argument(
        "--root", type=Path, default=Path(), help="folder with datasets, runs, adapters and outputs (default: here)"
    )
    parser.add_argument("--no-browser", action="store_true", help="don't open a browser window")
    options = parser.parse_args(arguments)
    if options.auth is not None and not all(options.auth.partition(":")[::2]):
        parser.error("--auth: write it as user:password")
    if options.host not in LOCAL_HOSTS and options.auth is None:
        parser.error(f"--host {options.host} opens the page to others: add --auth user:password")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    options = parse(arguments)
    print(f"sdlora: http://{options.host}:{options.port} (starting)", flush=True)  # noqa: T201
    from webui.app import serve
    from webui.workspace import Workspace

    return serve(
        Workspace(options.root.expanduser().resolve()),
        host=options.host,
        port=options.port,
        auth=options.auth,
        open_browser=not options.no_browser,
    )


if __name__ == "__main__":
    sys.exit(main())
