"""`sdlora doctor`: what works on this machine, and the command that fixes what doesn't."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from sdlora.cli.app import app, console

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
