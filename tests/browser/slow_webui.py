"""The page's server with each answer late by up to 0.8 s: `slow_webui.py SEED` and the arguments of `python -m webui`.

Left alone are the page's scripts and styles: they are fetched before anything can be pressed.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import uvicorn

MOST_SECONDS = 0.8
_LEFT_ALONE = ("/assets/", "/static/", "/theme.css")


class Late:
    """An application in front of another one, which it asks a little later."""

    def __init__(self, application: Any, seed: str) -> None:
        self._application = application
        self._draws = random.Random(seed)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(_LEFT_ALONE):
            await asyncio.sleep(self._draws.uniform(0.0, MOST_SECONDS))
        await self._application(scope, receive, send)


def main() -> int:
    """Serve until interrupted; returns the exit code."""
    seed, arguments = sys.argv[1], sys.argv[2:]
    plain = uvicorn.Config

    def config(application: Any, **options: Any) -> uvicorn.Config:
        return plain(Late(application, seed), **options)

    uvicorn.Config = config  # type: ignore[misc, assignment]
    from webui.__main__ import main as serve

    return serve(arguments)


if __name__ == "__main__":
    sys.exit(main())
