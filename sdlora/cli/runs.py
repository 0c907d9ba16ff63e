"""Commands on runs in the background: list them, and the queue in which they wait for their turn."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sdlora.cli.app import app, console, in_home
from sdlora.cli.guesses import SettingsCommand
from sdlora.cli.help import Commands
from sdlora.cli.train import PresetOption, SetOption
from sdlora.errors import ConfigError
from sdlora.words import as_typed, wrong_ending

if TYPE_CHECKING:
    from sdlora.launch.runs import RunHandle
    from sdlora.runs.state import RunState

queue_app = typer.Typer(
    cls=Commands, help="Let runs train one after the other in the background.", no_args_is_help=True
)
app.add_typer(queue_app, name="queue")

RunsFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds the runs.")]
RUNS = Path("runs")


@app.command()
def runs(
    folder: RunsFolder = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs, newest first, and how they stand."""
    from sdlora.launch.runs import list_runs

    _refuse_what_is_no_folder(folder)
    states = [(handle, handle.state()) for handle in list_runs(folder)]
    if as_json:
        typer.echo(json.dumps([{"folder": str(handle.folder), **asdict(state)} for handle, state in states], indent=2))
        return
    _show(states)
    if not states:
        console.print(f"no runs in {folder}", markup=False)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of two or more runs.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The page to write.", callback=in_home),
    ] = Path("comparison.html"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Put runs side by side: figures and settings here, with curves and previews on a page that can be sent around."""
    from sdlora.launch.comparison import compare as compare_runs

    if wrong := wrong_ending(out, ".html"):
        raise ConfigError("--out", [wrong])
    if out.exists() and not force:
        raise ConfigError("--out", [f"{out} exists already; choose another name, or give --force to replace it"])
    if not out.absolute().parent.is_dir():
        raise ConfigError("--out", [f"there is no folder {out.parent}"])
    found = compare_runs(runs)
    table = Table(box=None, pad_edge=False)
    for title in ("", *(run.label for run in found.runs)):
        table.add_column(escape(title), overflow="fold")
    for name, values in [*found.facts, *found.differences]:
        table.add_row(name, *map(escape, values))
    console.print(table)
    if not found.differences:
        console.print("no settings differ")
    found.write(out)
    console.print(f"{out}: with curves and previews", markup=False)


@queue_app.command("add", cls=SettingsCommand)
def queue_add(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run to go on with, instead of a new one.")
    ] = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
) -> None:
    """Put a new run, or one that stands still, into the queue; it starts at once if nothing runs."""
    from sdlora.config import files
    from sdlora.launch import queue
    from sdlora.launch.runs import find

    if run is not None and (preset or overrides):
        raise ConfigError("the command line", ["a RUN has its own settings: --preset and --set go without one"])
    if run is None:
        handle = queue.submit(files.load(preset, overrides or ()))
    else:
        handle = find(run)
        queue.enqueue(handle)
        queue.advance(handle.folder.parent)
    console.print(f"{handle.folder}: {handle.state().status}", markup=False)


@queue_app.command("list")
def queue_list(folder: RunsFolder = RUNS) -> None:
    """Show what runs and what waits, next one first."""
    from sdlora.launch import queue

    _refuse_what_is_no_folder(folder)
    found = queue.read(folder)
    _show([(handle, handle.state()) for handle in (*found.running, *found.waiting)])
    if not found.waiting:
        console.print("nothing waits")
    if found.damage:
        console.print(f"[red]{found.damage}[/]: delete it, then put the waiting runs in again")
    elif found.is_held:
        console.print(f"on hold: `{as_typed('sdlora', 'queue', 'start', folder)}` goes on", markup=False)


@queue_app.command("remove")
def queue_remove(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A waiting run's folder, for example runs/my-lora.")],
) -> None:
    """Take a run out of the queue; its folder stays."""
    from sdlora.launch import queue
    from sdlora.launch.runs import find

    queue.remove(find(run))


@queue_app.command("hold")
def queue_hold(folder: RunsFolder = RUNS) -> None:
    """Start nothing more; what runs goes on."""
    from sdlora.launch import queue

    _refuse_what_is_no_folder(folder)
    queue.hold(folder)
    console.print(f"on hold: `{as_typed('sdlora', 'queue', 'start', folder)}` goes on", markup=False)


@queue_app.command("start")
def queue_start(folder: RunsFolder = RUNS) -> None:
    """Lift the hold and start the next run if nothing runs: after a restart of the machine, say."""
    from sdlora.launch import queue

    _refuse_what_is_no_folder(folder)
    queue.hold(folder, is_held=False)
    for handle in queue.advance(folder):
        console.print(f"{handle.folder}: {handle.state().status}", markup=False)


def _refuse_what_is_no_folder(folder: Path) -> None:
    """A run's own folder, a file or a mistyped name must not read as "no runs"; the default may not be there yet."""
    if (folder / "config.yaml").is_file():
        raise ConfigError(str(folder), ["this is one run; give the folder that holds the runs"])
    if folder != RUNS and not folder.is_dir():
        from sdlora.data.scan_problems import did_you_mean

        raise ConfigError(str(folder), [f"no such folder{did_you_mean(folder)}"])


def _show(states: list[tuple[RunHandle, RunState]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "state", "step", "left", "begun", "what"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "step" else "left")
    for handle, state in states:
        total = "?" if state.total_steps is None else state.total_steps
        left = "" if state.eta_seconds is None else f"{state.eta_seconds / 60:.0f} min"
        begun = "" if state.started_at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(state.started_at))
        what = (state.last_error or state.stage or "").partition("\n")[0]
        table.add_row(handle.name, state.status, f"{state.step}/{total}", left, begun, what.replace("[", r"\["))
    if states:
        console.print(table)
