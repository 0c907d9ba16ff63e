"""`sdlora evaluate`: which checkpoint of a run is best, and which training images are trouble."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sdlora.cli.app import app, console, in_home
from sdlora.cli.guesses import EvaluateCommand
from sdlora.cli.progress import event_stream
from sdlora.cli.train import RunArgument, SetOption
from sdlora.config import files
from sdlora.config.evaluate import EvaluateConfig
from sdlora.errors import ConfigError

if TYPE_CHECKING:
    from sdlora.evaluation.report import Evaluation, ProblemReport, Scores, TiedWord

_NONE = "-"
_WEIGHTS = (0.4, 0.6, 0.8, 1.0, 1.2)


@app.command(cls=EvaluateCommand)
def evaluate(
    run: RunArgument,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="A YAML file with settings.", callback=in_home),
    ] = None,
    overrides: SetOption = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            metavar="MODEL",
            help="What compares images: latents, or a CLIP, SigLIP or DINOv2 model on the hub or in a folder.",
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Also measure the training images, to find those in trouble.")
    ] = True,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also try the recommended checkpoint at several weights, and advise one.")
    ] = False,
    words: Annotated[
        bool,
        typer.Option("--words", help="Also tell what the trigger has tied to itself of words that stand beside it."),
    ] = False,
    characters: Annotated[
        bool,
        typer.Option("--characters", help="Also tell whether one trigger of several brings what belongs to another."),
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make the recommended checkpoint the run's result; the former is kept.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a run's checkpoints and say which to take; find captions and images that spoil it.

    Interrupted it goes on where it was. Images and the report lie in RUN/evaluation.
    """
    source = "the command line" if config is None else str(config)
    values: dict[str, Any] = {} if config is None else files.read_yaml(config)
    files.override(values, overrides or (), source, EvaluateConfig)
    if features is not None:
        values["features"] = features
    if not images:
        files.override(values, ["problem_images.enabled=false"], source, EvaluateConfig)
    if weights and "weights" not in values:
        values["weights"] = _WEIGHTS
    elif weights and not values["weights"]:
        raise ConfigError(source, ["--weights asks for several weights, and weights is set to none"])
    if words:
        files.override(values, ["tied_words.enabled=true"], source, EvaluateConfig)
    if characters:
        files.override(values, ["characters.enabled=true"], source, EvaluateConfig)
    settings = files.validate(values, source, EvaluateConfig)

    from sdlora.runs.folder import find

    find(run)  # told without the seconds that loading torch takes
    from sdlora.evaluation.evaluate import evaluate as evaluate_run

    with event_stream() as events:
        result = evaluate_run(run, settings, events.sinks, promote=promote)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
        return
    _show(result)


def _show(result: Evaluation) -> None:
    _show_scores((result.base, *result.checkpoints), result.recommendation.label)
    console.print(f"\ntake {result.recommendation.sentence}", markup=False)
    if result.weight_advice is not None:
        console.print()
        _show_scores(result.weight_advice.tried, f"weight {result.weight_advice.weight:g}")
        console.print(f"\nuse it at {result.weight_advice.sentence}", markup=False)
    if result.tied_words is not None:
        _show_words(result.tied_words)
    if result.characters is not None:
        console.print("\nwhat each trigger brings of the others")
        for pair in result.characters:
            console.print(f"  {pair.sentence}", markup=False)
    if result.problem_images is not None:
        _show_problems(result.problem_images)
    if result.promoted:
        console.print(f"\n{result.promoted}", markup=False)
    console.print(f"\nreport: {result.run / 'evaluation' / 'evaluation.json'}", markup=False)


def _show_scores(rows: Sequence[Scores], marked: str) -> None:
    # Nine columns have to fit 80 letters: saturation and contrast stand in the report, `burned` sums them up.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    headings = ["", "likeness", "adherence", "copies", "diversity", "leak", "burned"]
    if rows[-1].held_out is not None:
        headings.append("held-out loss")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for one in rows:
        table.add_row(f"{one.label}{' *' if one.label == marked else ''}", *_cells(one))
    console.print(table)


def _cells(one: Scores) -> list[str]:
    cells = [
        f"{one.likeness:.3f}",
        _share(one.adherence_of_base),
        f"{len(one.copies)}/{one.num_images}",
        _share(one.diversity),
        _NONE if one.leak is None else f"{one.leak:.2f}",
        f"{one.burned}/{one.num_images}",
    ]
    if one.held_out is not None:
        cells.append(f"{one.held_out.value:.3f} ({one.held_out.low:.3f}-{one.held_out.high:.3f})")
    return cells


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _show_words(found: Sequence[TiedWord]) -> None:
    console.print("\nwhat stands beside the trigger")
    for one in found:
        console.print(f"  {one.sentence}", markup=False)
    if not found:
        console.print("  no words that most captions have")


def _show_problems(report: ProblemReport) -> None:
    console.print(f"\ntraining images that stand out (measured in {report.seconds:.0f} s)")
    for one in report.worst:
        console.print(f"  {one.name}: {one.kind}, {one.score:.1f} deviations: {one.sentence}", markup=False)
