"""The application object that all commands register with, and the console they print to."""

from __future__ import annotations

import typer
from rich.console import Console

app = typer.Typer(
    name="sdlora",
    help="Train Stable Diffusion LoRA adapters whose files load everywhere; inspect, mix, merge and convert them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

console = Console(highlight=False, soft_wrap=True)
