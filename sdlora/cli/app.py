"""The application object that all commands register with, and the console they print to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sdlora.cli.help import Commands
from sdlora.config.section import from_home
from sdlora.errors import ConfigError
from sdlora.version import __version__

app = typer.Typer(
    cls=Commands,
    name="sdlora",
    help="Train Stable Diffusion LoRA adapters whose files load everywhere; inspect, mix, merge and convert them.",
    no_args_is_help=True,
    # `main` puts errors into words, and a traceback into a file.
    pretty_exceptions_enable=False,
    add_completion=True,
)

# Without emojis: rich would turn `:b:` in a prompt, a name or printed YAML into one.
console = Console(highlight=False, soft_wrap=True, emoji=False)


def in_home(path: Path | None) -> Path | None:
    """For an option that takes a path, its `callback`: a shell leaves the `~` of `--out=~/x` as it is."""
    try:
        return None if path is None else from_home(path)
    except ValueError as error:
        raise ConfigError("the command line", [str(error)]) from None


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"sdlora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options without a command."""
