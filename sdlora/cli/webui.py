"""`sdlora webui`: starts the page, which is a package of its own above this one."""

from __future__ import annotations

import os
import subprocess
import sys

import typer

from sdlora.cli.app import app


@app.command(
    "webui", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def webui(context: typer.Context) -> None:
    """Open sdlora in the browser; `sdlora webui --help` lists its options."""
    command = [sys.executable, "-m", "webui", *context.args]
    if os.name == "posix":
        os.execv(sys.executable, command)  # so that signals and the exit code are the page's own
    raise typer.Exit(subprocess.call(command))
