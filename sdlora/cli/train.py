"""Commands around training: train, resume, requests to a run, presets, settings, the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined
from rich.table import Table

from sdlora.cli.app import app, console, in_home
from sdlora.cli.guesses import SettingsCommand, named, what_to_train
from sdlora.cli.help import Commands
from sdlora.config import files, schema
from sdlora.config.captioning import CaptioningConfig
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.generate import GenerateConfig
from sdlora.config.mix import MixConfig
from sdlora.config.serve import ServeConfig
from sdlora.config.sweep import SweepConfig
from sdlora.config.train import TrainConfig
from sdlora.constants import INTERRUPTED, MIB
from sdlora.errors import ConfigError
from sdlora.processes import LAUNCHER_VARIABLE, is_main_process, num_processes
from sdlora.runs.restarts import is_under_launcher
from sdlora.text_files import model_as_json
from sdlora.words import as_typed

if TYPE_CHECKING:
    from sdlora.runs.folder import Request
    from sdlora.sinks.terminal import TerminalSink
    from sdlora.training.loop.running import RunResult

presets_app = typer.Typer(
    cls=Commands,
    help="List the presets that come with sdlora; `presets show NAME` prints one.",
    invoke_without_command=True,
)
app.add_typer(presets_app, name="presets")
cache_app = typer.Typer(
    cls=Commands, help="Show and prune the cache of encoded images and captions.", no_args_is_help=True
)
app.add_typer(cache_app, name="cache")

PresetOption = Annotated[str | None, typer.Option("--preset", "-p", help="A preset's name, or a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="SECTION.NAME=VALUE", help="Overrule one setting; may be given again."),
]
ProcessesOption = Annotated[
    int, typer.Option("--processes", min=1, metavar="N", help="Train in N processes, one a card (or on the processor).")
]
RestartsOption = Annotated[
    int, typer.Option("--restarts", min=0, metavar="N", help="Start all processes again up to N times if one is lost.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing; the run's log.txt says it all.")]
RunArgument = Annotated[Path, typer.Argument(help="A run's folder, for example runs/my-lora.")]


@app.command(cls=SettingsCommand)
def train(
    source: Annotated[
        str | None, typer.Argument(metavar="[PRESET|FOLDER]", help="A preset or YAML file, or a folder of images.")
    ] = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print what differs from the defaults and what would happen."),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="With --dry-run: print all settings, defaults too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print JSON. Exit code 1 on problems.")
    ] = False,
    quiet: QuietOption = False,
    processes: ProcessesOption = 1,
    restarts: RestartsOption = 0,
) -> None:
    """Train an adapter, from a preset or a YAML file and single settings."""
    preset, overrides = what_to_train(source, preset, list(overrides or ()))
    _refuse_lone_restarts(processes, restarts)
    _refuse_idle(dry_run=dry_run, full=full, as_json=as_json, quiet=quiet)
    if as_json:
        _print_dry_run(preset, overrides or (), processes)
        return
    config = files.load(preset, overrides or ())
    _refuse_missing(config)
    if dry_run:
        if not is_main_process():
            return
        from sdlora.training.preflight.summary import summarise

        processes = max(processes, num_processes())
        console.print(files.dump(config, only_changes=not full), markup=False)
        console.print(summarise(config, processes).as_text(), markup=False)
        return
    if processes > 1:
        if not quiet:
            _mention_unfinished(config)
        flags = ["--quiet"] if quiet else []
        command = ["train", *(["--preset", preset] if preset else []), *_as_options(overrides), *flags]
        _train_together(config, command, processes, restarts)
        return
    from sdlora.training.loop.run import train as train_adapter

    if not quiet:
        _mention_unfinished(config)
    with _queue_goes_on(config.outputs.folder):
        _exit_like(train_adapter(config, sinks=[] if quiet else [_terminal()]))


@app.command(cls=SettingsCommand)
def resume(
    run: RunArgument,
    overrides: SetOption = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although images or captions were changed meanwhile.")
    ] = False,
    quiet: QuietOption = False,
    processes: ProcessesOption = 1,
    restarts: RestartsOption = 0,
) -> None:
    """Go on with an interrupted run from its newest checkpoint, or begin one that was only prepared.

    With --set other settings hold from here on: more steps, another rate, other previews.
    """
    from sdlora.launch import queue, runs

    _refuse_lone_restarts(processes, restarts)
    # Begun by hand it no longer waits for its turn.
    if is_main_process():
        queue.remove(runs.find(run))
    if processes > 1:
        from sdlora.runs import changes

        config, _ = changes.planned(run, overrides or ())
        flags = [*(["--accept-changes"] if accept_changes else []), *(["--quiet"] if quiet else [])]
        command = ["resume", str(run), *_as_options(overrides or ()), *flags]
        _train_together(config, command, processes, restarts, run.expanduser().resolve())
        return
    # After that: a folder that is no run is told without the seconds that loading torch takes.
    from sdlora.training.loop.run import resume as resume_run

    with _queue_goes_on(run.expanduser().resolve().parent):
        sinks = [] if quiet else [_terminal()]
        _exit_like(resume_run(run, sinks, overrides=overrides or (), accept_changes=accept_changes))


@app.command()
def stop(run: RunArgument) -> None:
    """Ask a running training to save and stop after the current step."""
    _ask(run, "stop")


@app.command()
def save(run: RunArgument) -> None:
    """Ask a running training for a checkpoint now."""
    _ask(run, "save")


@app.command()
def preview(
    run: RunArgument,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Instead of the run's previews: what to draw, as in previews.prompts ('a fox --am 0.7')."),
    ] = None,
) -> None:
    """Ask a running training for its previews now, or for any pictures, which come into its folder asked/."""
    from sdlora.launch.runs import find

    handle = find(run)
    if not prompts:
        handle.preview_now()
        console.print(f"asked {handle.name} to preview; it answers between two steps", markup=False)
        return
    handle.draw(prompts)
    pictures = "a picture" if len(prompts) == 1 else f"{len(prompts)} pictures"
    console.print(
        f"asked {handle.name} for {pictures}; drawn between two steps, into {handle.files.asked_pictures}", markup=False
    )


@presets_app.callback()
def presets(context: typer.Context) -> None:
    """List the presets that come with sdlora; `presets show NAME` prints one."""
    if context.invoked_subcommand is not None:
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for path in files.shipped_presets():
        table.add_row(path.name, files.purpose(path))
    console.print(table)


@presets_app.command("show")
def show_preset(name: Annotated[str, typer.Argument(help="A preset's name.")]) -> None:
    """Print a preset, to read or to begin an own one from: sdlora presets show sd15_style > mine.yaml."""
    typer.echo(files.find(name).read_text(encoding="utf-8"), nl=False)


@app.command()
def explain(
    name: Annotated[
        str,
        typer.Argument(
            help="A setting or section (adapter.rank, images, generate, sweep), or its name in another tool."
        ),
    ] = "",
) -> None:
    """Explain settings: kind of value, default and meaning."""
    of_others = (GenerateConfig, SweepConfig, EvaluateConfig, MixConfig, CaptioningConfig, ServeConfig)
    known = [
        *schema.settings(TrainConfig),
        *(setting for section in of_others for setting in schema.settings(section, f"{files.command_of(section)}.")),
    ]
    if not name:
        found = list(schema.settings(TrainConfig))
    else:
        found = [item for item in known if f"{item.name}.".startswith(f"{name}.")]
    if not found and (meant := named(name)):
        console.print(f"'{name}' is here:", markup=False)
        found = [item for item in known if item.name in meant]
    if not found:
        found = [item for item in known if name.lower() in f"{item.name} {item.description}".lower()]
    for item in found:
        default = "required" if item.default is PydanticUndefined else _as_yaml(item.default)
        console.print(f"[bold]{item.name}[/] = {default}", f"[dim]({item.kind})[/]".replace("[]", ""))
        console.print(f"    {item.description}", markup=False)
    if not found:
        console.print(f"no setting is called or mentions '{name}'", markup=False)
        raise typer.Exit(2)


CacheFolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Cache folder; by default the user's.", callback=in_home)
]


@cache_app.command("show")
def cache_show(
    folder: CacheFolderOption = None,
) -> None:
    """Show where the cache lies, how many entries it has and its size."""
    from sdlora.data.cache import Cache, default_cache_folder

    summary = Cache(folder or default_cache_folder()).summary()
    console.print(f"{summary.folder}: {summary.entries} entries, {summary.size_bytes / MIB:.1f} MiB", markup=False)


@cache_app.command("prune")
def cache_prune(
    keep_mib: Annotated[float | None, typer.Option(help="Keep the most recently used entries up to this size.")] = None,
    older_than_days: Annotated[float | None, typer.Option(help="Remove entries not used for so many days.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all entries; the next run encodes again.")] = False,
    folder: CacheFolderOption = None,
) -> None:
    """Remove cached entries by size or age."""
    from sdlora.data.cache import Cache, default_cache_folder

    max_bytes = None if keep_mib is None else int(keep_mib * MIB)
    # Either everything, or by size and age: not both, and not neither.
    if everything == (max_bytes is not None or older_than_days is not None):
        raise ConfigError("the command line", ["say what to remove: --keep-mib, --older-than-days, or --all"])
    if everything:
        max_bytes = 0
    older_than = None if older_than_days is None else timedelta(days=older_than_days)
    removed = Cache(folder or default_cache_folder()).prune(max_bytes=max_bytes, older_than=older_than)
    console.print(f"removed {removed.entries} entries, {removed.size_bytes / MIB:.1f} MiB")


def _as_yaml(value: object) -> str:
    """A default as one writes it into a file or behind --set."""
    plain = TypeAdapter(object).dump_python(value, mode="json")
    return (
        yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
    )


def _ask(run: Path, request: Request) -> None:
    from sdlora.launch.runs import find

    handle = find(run)
    handle.ask(request)
    console.print(f"asked {handle.name} to {request}; it answers between two steps", markup=False)


def _terminal() -> TerminalSink:
    from sdlora.sinks.terminal import TerminalSink

    # Where several processes are ours, how they failed is told once, by us.
    return TerminalSink(tells_failure=LAUNCHER_VARIABLE not in os.environ)


def _as_options(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def _refuse_lone_restarts(processes: int, restarts: int) -> None:
    if restarts and processes == 1:
        raise ConfigError("the command line", ["--restarts goes with --processes 2 or more, which a launcher watches"])


def _train_together(
    config: TrainConfig, command: Sequence[str], processes: int, restarts: int, run: Path | None = None
) -> None:
    """Have several processes run a command of training, in place of this one."""
    from sdlora.launch import together

    together.check(config, processes)
    with _queue_goes_on(config.outputs.folder):
        if together.train(command, processes, restarts, config.outputs.folder, run):
            raise typer.Exit(INTERRUPTED)


def _refuse_idle(*, dry_run: bool, full: bool, as_json: bool, quiet: bool) -> None:
    """Options that would change nothing beside the others."""
    problems = [f"--{name} goes with --dry-run only" for name, on in (("full", full), ("json", as_json)) if on]
    if dry_run:
        problems = ["--quiet has no effect with --dry-run, which is there to print"] if quiet else []
        problems += ["--full has no effect with --json, which tells no settings"] if full and as_json else []
    if problems:
        raise ConfigError("the command line", problems)


def _print_dry_run(preset: str | None, overrides: Sequence[str], processes: int) -> None:
    from sdlora.training.preflight.dry_run import DryRun, problems_of

    try:
        config = files.load(preset, overrides)
    except ConfigError as error:
        found = DryRun(problems=problems_of(error))
    else:
        from sdlora.training.preflight.summary import dry_run as find_out

        found = find_out(config, processes)
    typer.echo(model_as_json(found, indent=2))
    if found.problems:
        raise typer.Exit(1)


@contextmanager
def _queue_goes_on(runs_folder: Path) -> Iterator[None]:
    """Start the next waiting run when this one has ended, however it ended, unless a person interrupted it here."""
    from sdlora.launch import queue
    from sdlora.training.loop.interrupts import StoppedEarly

    if not is_main_process():
        yield
        return
    try:
        yield
    except StoppedEarly as error:
        if not error.is_asked:
            raise typer.Exit(INTERRUPTED) from None
    # A run that was interrupted at this terminal leaves the queue to the person who did it.
    except (KeyboardInterrupt, typer.Exit):
        raise
    except BaseException:
        queue.advance(runs_folder)
        raise
    queue.advance(runs_folder)


def _refuse_missing(config: TrainConfig) -> None:
    """Folders and files that aren't there, before torch is loaded."""
    from sdlora.training.preflight.paths import missing_paths

    if problems := missing_paths(config, "no image folder is set: use --set images.folder=FOLDER"):
        raise ConfigError("this run", problems)


def _mention_unfinished(config: TrainConfig) -> None:
    """Say that a run with the very same settings was stopped or broke off: going on with it may be what was meant."""
    if LAUNCHER_VARIABLE in os.environ or not is_main_process():
        return
    from sdlora.launch.runs import list_runs
    from sdlora.runs.folder import with_absolute_paths

    wanted = with_absolute_paths(config)
    for run in list_runs(config.outputs.folder):
        state = run.state()
        if state.status not in ("stopped", "failed", "crashed") or not state.step:
            continue
        with suppress(ConfigError):  # a damaged one is no candidate
            begun = run.config()
            if wanted.previews.from_captions and not wanted.previews.prompts:  # it has taken them by now
                begun = begun.model_copy(update={"previews": begun.previews.model_copy(update={"prompts": ()})})
            if begun == wanted:
                where = f"{_shown(run.folder)} is the same run, {state.status} at step {state.step}"
                command = as_typed("sdlora", "resume", _shown(run.folder))
                console.print(f"{where}: {command} goes on with it. This one begins anew beside it.", markup=False)
                return


def _shown(folder: Path) -> str:
    """A folder as short as it can be typed here."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _exit_like(result: RunResult) -> None:
    if result.outcome == "stopped" and is_main_process():
        console.print(f"to go on: {as_typed('sdlora', 'resume', _shown(result.folder))}", markup=False)
    # A launcher takes any code but 0 for a failure, after which it would start all again.
    if result.interrupted and not is_under_launcher():
        raise typer.Exit(INTERRUPTED)
