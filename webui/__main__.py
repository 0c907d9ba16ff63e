"""`sdlora webui` or `python -m webui`: check the arguments, print the address, serve the page."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from sdlora.disk import explain
from sdlora.errors import MissingPackageError
from sdlora.processes import without_traceback
from sdlora.serving.addresses import as_url, is_local, why_not

DEFAULT_PORT = 7860
AUTH_VARIABLE = "SDLORA_WEBUI_AUTH"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's values. Exits with code 2 where they don't make sense together."""
    parser = argparse.ArgumentParser(prog="sdlora webui", description="sdlora in the browser.")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind; others than this machine need --auth")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        default=os.environ.get(AUTH_VARIABLE),
        help=f"ask for this name and password; ${AUTH_VARIABLE} keeps it out of the list of processes",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name the page may be called by, such as that of a proxy; may be repeated",
    )
    parser.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a proxy in front of the page (127.0.0.1, 10.0.0.0/8), believed about whom it passes on; may be repeated",
    )
    parser.add_argument(
        "--root", type=Path, default=Path(), help="folder with datasets, runs, adapters and outputs (default: here)"
    )
    parser.add_argument("--no-browser", action="store_true", help="don't open a browser window")
    options = parser.parse_args(arguments)
    # `all` asks for both halves; only the first colon parts them, so a password may hold more.
    if options.auth is not None and not all(options.auth.partition(":")[::2]):
        parser.error("--auth: write it as user:password")
    if not is_local(options.host) and options.auth is None:
        parser.error(f"--host {options.host} opens the page to others: add --auth user:password")
    if wrong := [proxy for proxy in options.proxy if not _is_network(proxy)]:
        parser.error(f"--proxy {wrong[0]}: give the address, or network, that the proxy's requests come from")
    if not 0 < options.port < 65536:
        parser.error(f"--port {options.port}: it must be from 1 to 65535")
    if options.root.exists() and not options.root.is_dir():
        parser.error(f"--root {options.root} is a file: give a folder")
    return options


def _is_network(text: str) -> bool:
    try:
        # All there are would let anybody say to be anybody.
        return ipaddress.ip_network(text).prefixlen > 0
    except ValueError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    options = parse(arguments)
    if problem := why_not(options.host, options.port):
        print(f"sdlora: {problem}", file=sys.stderr)  # noqa: T201
        return 2
    if find_spec("gradio") is None:
        print(f"sdlora: {MissingPackageError('the page', 'gradio', 'webui')}", file=sys.stderr)  # noqa: T201
        return 2
    # Importing Gradio takes seconds; told before it, the address is on the terminal at once.
    print(f"sdlora: {as_url(options.host, options.port)} (starting)", flush=True)  # noqa: T201
    gc.disable()  # until the page stands: of all that is made for it nothing is garbage
    from webui.app import serve
    from webui.workspace import Workspace

    try:
        # Not `resolve`: before Python 3.13 that has an error of its own for links in a circle.
        workspace = Workspace(Path(os.path.realpath(options.root.expanduser(), strict=options.root.is_symlink())))
        workspace.prepare()
    except OSError as error:
        print(f"sdlora: {explain(error)} (--root says where the page keeps its files)", file=sys.stderr)  # noqa: T201
        return 2
    # Gradio's own is /tmp/gradio, which every program and person of the machine shares, and reads.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(workspace.uploads))
    # Runs and jobs inherit the environment, and have no use for the password.
    os.environ.pop(AUTH_VARIABLE, None)
    os.chdir(workspace.root)  # so that `datasets/cats`, typed anywhere on the page, is the one that it shows
    return serve(
        workspace,
        host=options.host,
        port=options.port,
        auth=options.auth,
        open_browser=not options.no_browser,
        allowed_hosts=options.allow_host,
        proxies=options.proxy,
    )


if __name__ == "__main__":
    with without_traceback():
        sys.exit(main())
