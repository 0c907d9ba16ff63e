"""`sdlora suggest`: settings to begin with for a folder of pictures, each with its reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from sdlora.cli.app import app, console, in_home
from sdlora.config.presets import Subject
from sdlora.words import as_typed, wrong_ending


@app.command()
def suggest(
    folder: Annotated[str, typer.Argument(help="The pictures, with their captions.")],
    subject: Annotated[
        Subject,
        typer.Option("--for", help="What the pictures are to teach."),
    ],
    base: Annotated[
        str | None, typer.Option("--base", "-b", help="The base model: a hub name, a folder or a file.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", "-m", help="What the card has, as 8GB; the settings keep to it.")
    ] = None,
    trigger: Annotated[
        str | None, typer.Option("--trigger", help="The word that is to call up what is learned.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the preset to this file, as my.yaml.", callback=in_home),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Suggest settings for a folder of pictures, each with its reason, as a preset to train with or to change."""
    from sdlora import atomic
    from sdlora.errors import ConfigError
    from sdlora.training.preflight.suggestion import suggest as suggest_settings

    problems = []
    if output is not None and (wrong := wrong_ending(output, ".yaml", ".yml")):
        problems.append(f"--output: {wrong}")
    if output is not None and output.exists() and not force:
        problems.append(f"--output: {output} is there already: take another name, or --force replaces it")
    if output is not None and not output.parent.is_dir():
        problems.append(f"--output: there is no folder {output.parent}")
    if base is not None and not base.strip():
        problems.append("--base: is empty")
    if problems:
        raise ConfigError("the command line", problems)
    limit_gib = None
    if memory is not None:
        from sdlora.training.preflight.fitting import parse_memory  # loads torch, which nothing else here needs

        limit_gib = parse_memory(memory)
    found = suggest_settings(folder, subject, base=base, memory_gib=limit_gib, trigger=trigger)
    found.config()
    if output is not None and found.preset in (output.name, *(file.name for file in output.parent.iterdir())):
        raise ConfigError(
            "--output",
            [f"{output.parent / found.preset} would be read in place of the preset {found.preset}: take another place"],
        )
    text = found.to_yaml()
    if output is not None:
        atomic.write_text(output, text)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    if output is None:
        typer.echo(text, nl=False)
    else:
        console.print(text, end="", markup=False, highlight=False)
    for remark in found.remarks:
        typer.echo(f"note: {remark}", err=True)
    if output is not None:
        console.print(
            f"\nwritten: {output}. Train with: {as_typed('sdlora', 'train', '--preset', output)}", markup=False
        )
