"""The command that trains many times to find settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sdlora.cli.app import app, console, in_home
from sdlora.config.sweep import Range
from sdlora.constants import INTERRUPTED
from sdlora.words import as_typed, count, duration_in_words

if TYPE_CHECKING:
    from sdlora.launch.sweep import Trial

_SHOWN = 10


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(metavar="SWEEP.yaml", help="What is trained, and which settings differ.", callback=in_home),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print what would be tried.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the trials as JSON at the end.")] = False,
) -> None:
    """Train many times with other settings and keep the best by the loss on held-out images."""
    from sdlora.launch.sweep import Sweep

    made = Sweep(file)
    config = made.config
    for remark in made.remarks:
        typer.echo(f"note: {remark}", err=True)
    if dry_run:
        for name, values in config.vary.items():
            console.print(f"{name}: {_in_words(values)}", markup=False)
        how = "every combination" if config.sampler == "grid" else f"chosen by {config.sampler}"
        pruned = "" if config.prune == "none" else f", hopeless ones ended early ({config.prune})"
        console.print(f"{count(config.num_trials, 'training')}, {how}{pruned}, in {made.folder}", markup=False)
        return
    begun: list[int] = [trial.number for trial in made.begun()]
    if len(begun) > config.num_trials:
        told = f"trials={config.num_trials}: {len(begun)} have been trained already, and all of them are compared"
        typer.echo(f"note: {told}", err=True)

    def tell(trial: Trial) -> None:
        if trial.number not in begun:
            begun.append(trial.number)
        if not as_json:
            _tell(trial, begun.index(trial.number) + 1, config.num_trials)

    try:
        trials = made.run(tell)
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on: {as_typed('sdlora', 'sweep', file)}", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps([{**asdict(trial), "run": trial.run and str(trial.run)} for trial in trials]))
        return
    _print_table(trials, list(config.vary))
    console.print(f"table, best settings and adapter: {made.folder}", markup=False)


def _tell(trial: Trial, place: int, total: int) -> None:
    values = ", ".join(f"{name}={_short(value)}" for name, value in trial.values.items())
    if trial.state == "running":
        console.print(f"trial {trial.number} ({place} of {total}): {values}", markup=False)
        return
    loss = "" if trial.relative_loss is None else f", {trial.relative_loss:.4f} of the base's loss at step {trial.step}"
    reason = f": {trial.reason}" if trial.reason else ""
    console.print(f"trial {trial.number} {trial.state}{loss}, {duration_in_words(trial.seconds)}{reason}", markup=False)


def _print_table(trials: list[Trial], names: list[str]) -> None:
    table = Table("trial", *names, "loss / base", "step", "")
    for trial in trials[:_SHOWN]:
        loss = "" if trial.relative_loss is None else f"{trial.relative_loss:.4f}"
        values = [_short(trial.values.get(name)) for name in names]
        table.add_row(str(trial.number), *values, loss, str(trial.step or ""), trial.state)
    console.print(table)


def _in_words(values: object) -> str:
    if isinstance(values, Range):
        spread = ", by its logarithm" if values.log else ""
        step = "" if values.step is None else f", in steps of {values.step:g}"
        return f"{values.low:g} to {values.high:g}{step}{spread}"
    assert isinstance(values, tuple)
    return ", ".join(map(_short, values))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
