"""`sdlora serve`: one base model and many adapters over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from sdlora.cli.app import app, console, in_home
from sdlora.cli.guesses import ServeCommand
from sdlora.cli.train import SetOption
from sdlora.config import files, schema
from sdlora.config.serve import ServeConfig


@app.command(cls=ServeCommand)
def serve(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE.yaml]", help="Settings; options overrule it.", callback=in_home),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Base model: folder, .safetensors file, builtin:... or a hub name.")
    ] = None,
    adapter_folders: Annotated[
        list[Path] | None,
        typer.Option("--adapter-folder", help="A folder whose adapters requests may name; may be given again."),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; others than this machine need --key-file.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port to listen on. [default: 8000]".replace("[", r"\["))
    ] = None,
    allow_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", help="Another name the server may be called by, such as a proxy's; may be given again."
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="API keys, one a line: every request must bring one.", callback=in_home),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Generate images for many at once over HTTP, as OpenAI's images API does, each with adapters of their own.

    Requests with different adapters share the base model and its passes. Ctrl-C answers what was asked, then stops.
    """
    source = "the command line" if file is None else str(file)
    values: dict[str, Any] = {} if file is None else files.read_yaml(file)
    given = {
        "base_model.model": base,
        "adapter_folders": [str(folder) for folder in adapter_folders] if adapter_folders else None,
        "host": host,
        "port": port,
        "allow_hosts": allow_hosts or None,
        "key_file": None if key_file is None else str(key_file),
    }
    values = schema.joined(values, schema.nest({name: value for name, value in given.items() if value is not None}))
    files.override(values, overrides or (), source, ServeConfig)
    settings = files.validate(values, source, ServeConfig)

    from sdlora.serving.server import serve as serve_images

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("sdlora.serving").setLevel(logging.INFO)
    serve_images(settings, lambda line: console.print(line, markup=False))
