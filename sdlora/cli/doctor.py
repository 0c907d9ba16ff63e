"""`sdlora doctor`: what works on this machine; `sdlora support`: what to send to who helps with a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sdlora.cli.app import app, console, in_home

_MARKS = {"ok": "[green]ok[/green]     ", "note": "[yellow]note[/yellow]   ", "problem": "[red]problem[/red]"}


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    network: Annotated[bool, typer.Option("--network/--no-network", help="Try to reach the model hub.")] = True,
) -> None:
    """Try what this installation can do: device, number types, optional packages, disk, hub. Exit code 1: problems."""
    from rich.markup import escape

    from sdlora.training.preflight.doctor import examine

    found = []
    for finding in examine(with_network=network):
        found.append(finding)
        if not as_json:
            console.print(f"{_MARKS[finding.verdict]}  {finding.topic:<13} {escape(finding.text)}")
            if finding.fix and finding.verdict != "ok":
                console.print(f"{'':<24}-> {escape(finding.fix)}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    if any(finding.verdict == "problem" for finding in found):
        raise typer.Exit(1)


@app.command()
def support(
    run: Annotated[Path, typer.Argument(help="A run's folder, for example runs/my-lora.")],
    folder: Annotated[
        Path,
        typer.Option("--folder", "-f", help="Where the zip file is written.", callback=in_home),
    ] = Path(),
    with_prompts: Annotated[bool, typer.Option("--with-prompts", help="Leave captions and prompts in.")] = False,
) -> None:
    """Pack a run's settings, environment, events and log into a zip file for who helps: no images, no secrets."""
    from sdlora.launch.runs import find
    from sdlora.launch.support import support_zip
    from sdlora.training.preflight.doctor import examine

    handle = find(run)
    findings = json.dumps([asdict(finding) for finding in examine(with_network=False)], indent=2)
    path = support_zip(handle, folder, with_prompts=with_prompts, more={"doctor.json": findings})
    console.print(f"{path}: look into it before you send it; names of files and folders are in it", markup=False)
