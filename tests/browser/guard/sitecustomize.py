"""Python loads this first where the folder is on PYTHONPATH: no look-up of, and no connection to, another machine.

What was tried is added to the file that SDLORA_TEST_LOOK_UPS names, one host a line.
"""

import os
import sys
from pathlib import Path

_HERE = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "None")


def _refuse_others(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in _HERE:
        return
    with Path(os.environ["SDLORA_TEST_LOOK_UPS"]).open("a", encoding="utf-8") as log:
        log.write(f"{name}\n")
    raise OSError(f"the tests have no way to {name}")


if "SDLORA_TEST_LOOK_UPS" in os.environ:
    sys.addaudithook(_refuse_others)
