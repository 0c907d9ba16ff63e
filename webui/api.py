"""The page's API for programs: `gradio_client.Client(url).predict(..., api_name="/train")`.

Arguments are checked against the functions' types, results are typed, errors are plain text. `?view=api` on the page
and docs/guides/page.md say what there is.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, cast

import gradio as gr
from pydantic import ValidationError, validate_call

from sdlora import GenerateConfig
from sdlora.config import fields, files
from sdlora.config.outputs import OutputsConfig
from sdlora.config.presets import Subject
from sdlora.data.sets import folders
from sdlora.disk import circle_of_links, explain
from sdlora.errors import ConfigError, RunError, SdloraError
from sdlora.evaluation import report
from sdlora.launch import exports, queue, runs, suggestions
from sdlora.launch.jobs import start_job
from sdlora.launch.runs import RunHandle
from sdlora.library import mixes
from sdlora.library.rows import check_family, from_used
from sdlora.runs.state import RunState
from webui.api_words import in_words_of_the_api
from webui.context import Context
from webui.generate.request import FIELDS, read_request

log = logging.getLogger("webui")

_LOOK_SECONDS = 0.2
_LONGEST_ERROR = 4000
"""Characters: what was sent is named in it, and may be as long as it likes."""


class RunStatus(TypedDict):
    """How a run stands; what is not known yet is null."""

    run: str
    status: str
    """queued, starting, running, stopping, stopped, finished, crashed or failed."""
    step: int
    total_steps: int | None
    loss: float | None
    """Mean of the last 50 steps."""
    steps_per_second: float | None
    eta_seconds: float | None
    last_error: str | None
    adapter: str | None
    """Path of the adapter file, once there is one."""


class Dataset(TypedDict):
    """A dataset of the page's folder."""

    name: str
    images: int
    folder: str
    """As `images.folder` of a run takes it."""


class Queue(TypedDict):
    """The runs that wait, the next one first."""

    waiting: list[str]
    is_held: bool
    """Whether none of them begins until a person lets the queue go on."""


class Finding(TypedDict):
    """One thing about a dataset that would make a run fail or an adapter bad."""

    severity: str
    """error, warning or note."""
    rule: str
    message: str
    fix: str
    """What to do about it."""
    files: list[str]


class Suggested(TypedDict):
    """A preset for a dataset, as YAML that /train takes, and what no setting can mend."""

    preset: str
    remarks: list[str]


class Evaluated(TypedDict):
    """The checkpoint to take and why; the report has the scores of all."""

    checkpoint: str
    step: int | None
    reasons: list[str]
    report: str
    """Path of the JSON file."""


class Mixed(TypedDict):
    """A new adapter file, and what was said as it was written."""

    adapter: str
    output: str


class Generated(TypedDict):
    """Paths of images with the seed of each, and what was said."""

    images: list[str]
    seeds: list[int]
    warnings: list[str]


def add_run_endpoints(context: Context) -> None:
    """Offer what trains, watches and evaluates runs. Call it inside the page's Blocks."""
    runs_folder, watch = context.workspace.runs, context.services.watch
    evaluations = context.services.evaluations

    def train(preset: str, overrides: list[str]) -> str:
        """Queue a run of a preset with `section.name=value` overrides; returns its name.

        preset: the name of a shipped preset or of one of yours, or settings as YAML text. It starts at once if nothing
        else trains.
        """
        config = files.load_foreign(preset, context.workspace.presets, overrides)
        if config.outputs.folder not in (OutputsConfig().folder, runs_folder):
            raise ConfigError(
                "the call of /train", [f"outputs.folder: leave it out; runs of the page lie in {runs_folder}"]
            )
        return queue.submit(config, runs_folder).name

    def status(run: str) -> RunStatus:
        """How a run stands; it is named by its folder."""
        return _status(run, _find(runs_folder, run).state())

    def list_runs() -> list[RunStatus]:
        """How all runs stand, newest first."""
        return [_status(run.name, run.state) for run in watch.snapshot(now=True).runs]

    def stop(run: str) -> str:
        """Ask a run to save and stop after its current step; returns its name."""
        _find(runs_folder, run).stop()
        return run

    def resume(run: str) -> str:
        """Go on with a stopped or failed run, or queue it while another trains; returns its name."""
        watch.resume(_find(runs_folder, run))
        return run

    def list_waiting() -> Queue:
        """The runs that wait for others to end."""
        seen = watch.snapshot(now=True)
        return Queue(waiting=list(seen.waiting), is_held=seen.is_held)

    def evaluate(run: str, overrides: list[str] | None = None) -> Evaluated:
        """Compare a run's checkpoints and wait for it.

        overrides: settings as `sdlora evaluate --set` takes them, `num_seeds=2`.
        """
        handle = _find(runs_folder, run)
        evaluations.start(handle, overrides or [])
        state, found = evaluations.wait(handle), report.read(handle.folder)
        if state.status != "finished" or found is None:
            raise RunError(f"{run} was not evaluated: {state.error or state.status}")
        best = found.recommendation
        file = report.report_file(handle.folder)
        return Evaluated(checkpoint=best.label, step=best.step, reasons=list(best.reasons), report=str(file))

    for function in (train, status, stop, resume, evaluate):
        _offer(context, function)
    _offer(context, list_runs, "runs")
    _offer(context, list_waiting, "queue")


def add_dataset_endpoints(context: Context) -> None:
    """Offer the datasets, their check, and settings for them. Call it inside the page's Blocks."""
    jobs = context.workspace.jobs

    def datasets() -> list[Dataset]:
        """The datasets that a run can be trained on."""
        known = context.workspace.datasets
        return [
            Dataset(name=name, images=folders.count_images(known / name), folder=str(known / name))
            for name in folders.names(known)
        ]

    def check(folder: str) -> list[Finding]:
        """What is wrong with a dataset, the worst first.

        folder: a path, `datasets/fox`, or a sample set, `builtin:mascot`.
        """
        job = start_job(["dataset", "check", "--json", "--", _named(folder, "check")], jobs)
        try:
            if (state := job.wait()).status != "finished":
                raise RunError(f"{folder} was not checked: {state.error or state.status}")
            told = job.result()
        finally:
            job.delete()
        kept = Finding.__annotations__
        return [cast(Finding, {name: each[name] for name in kept}) for each in told["findings"]]

    def suggest(folder: str, subject: Subject, base: str = "", memory_gib: float = 0.0, trigger: str = "") -> Suggested:
        """Settings to begin with for a dataset, each with its reason.

        folder: as for check. subject: what it is to teach: style, person, character or concept. base: a base model;
        without one SD 1.5 or SDXL, by the pictures' size. memory_gib: what the card has; 0 is "not looked at".
        trigger: the word for the subject, where the captions have none.
        """
        found = suggestions.suggest(
            _named(folder, "suggest"),
            subject,
            base=base or None,
            memory_gib=memory_gib or None,
            trigger=trigger or None,
            jobs=jobs,
        )
        return Suggested(preset=found.to_yaml(), remarks=list(found.remarks))

    for function in (datasets, check, suggest):
        _offer(context, function)


def add_image_endpoints(context: Context) -> None:
    """Offer mix and generate. Call it inside the page's Blocks."""
    services = context.services

    def mix(adapters: list[str], name: str, method: str = "concat", rank: int = 0, energy: float = 0.0) -> Mixed:
        """Mix adapters into a new file of the library and wait for it.

        adapters: as on the command line, `NAME:0.8` or `FILE:unet=0.6,te=0.3,blocks=OUTD`, by library name or path.
        name: of the new file. method: concat, svd, linear, ties, dare or dare-ties; all but concat and linear need a
        rank or a share of energy (0 is "not given").
        """
        rows = from_used(mixes.find_operands(adapters, services.scan()))
        target = mixes.new_file(name, context.workspace.adapters, ".safetensors")
        family = check_family(rows, services.adapters)
        settings = {"method": method, "rank": rank or None, "energy": energy or None, "family": family}
        job = exports.start_mix(mixes.mix_config(rows, settings), target, context.workspace.jobs)
        if (state := job.wait()).status != "finished":
            raise RunError(f"{target.name} was not written: {state.error or state.status}")
        services.scan()
        # a key called "path" would make clients fetch the file
        return {"adapter": str(target), "output": exports.outcome(job)}

    def generate(prompt: str, adapters: list[str], settings: dict[str, Any]) -> Generated:
        """Generate images and wait for them.

        adapters: as for mix, with an empty list none; those in use on the page don't count. settings: any of a
        request by dotted name, such as {"steps": 20, "seed": 1, "num_images": 2, "base_model.model": "builtin:emoji"}.
        """
        if "prompt" in settings:
            raise ConfigError("the request", ["prompt: is an argument of its own; leave it out of settings"])
        config = read_request(
            services,
            {**fields.show_all(GenerateConfig(), FIELDS), **_as_shown(settings), "prompt": prompt},
            rows=from_used(mixes.find_operands(adapters, services.scan())),
        )
        number = services.images.submit(config)
        while not (request := services.images.get(number)).is_over:
            time.sleep(_LOOK_SECONDS)
        if request.status != "finished":
            raise RunError(request.error or f"the request was {request.status}")
        return {
            "images": [str(path) for path in request.images],
            "seeds": list(request.seeds),
            "warnings": list(request.warnings),
        }

    for function in (mix, generate):
        _offer(context, function)


def _named(folder: str, call: str) -> str:
    """The folder, which is not the page's own by leaving it empty."""
    if not folder.strip():
        raise ConfigError(f"the call of /{call}", ["folder: name one, such as datasets/fox"])
    return folder


def _as_shown(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as the page's inputs show them, where lists and mappings are text."""
    by_name = {field.name: field for field in FIELDS}
    return {
        name: fields.show(by_name[name], value) if name in by_name and isinstance(value, list | dict) else value
        for name, value in settings.items()
    }


def _offer(context: Context, function: Callable[..., Any], name: str = "") -> None:
    name = name or function.__name__
    context.services.signatures[name] = inspect.signature(function)
    # With the page's limit of one, a call that waits minutes for its images would hold up every other.
    gr.api(_checked(function, name), api_name=name, concurrency_limit=None)


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function with its arguments checked, and errors as plain text; `webui.context.handler` words them in HTML."""
    parameters = list(inspect.signature(function).parameters)
    call = validate_call(function)

    @functools.wraps(function)
    def checked(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except ValidationError as error:
            problems = [_in_words(item, parameters) for item in error.errors()]
            words = str(ConfigError(f"the call of /{name}", problems))
        except SdloraError as error:
            words = in_words_of_the_api(str(error))
        except OSError as error:  # a full disk, no permission: for the caller to mend
            words = explain(error)
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end]
            words = str(ConfigError(f"the call of /{name}", [f"{half!r} is half a character: send it whole"]))
        except Exception as error:
            if isinstance(error, RuntimeError) and (circle := circle_of_links(error)):
                words = explain(circle)
            else:
                log.exception("/%s failed", name)
                words = f"That did not work: {type(error).__name__}. Details are in the server's log."
        raise gr.Error(
            words if len(words) <= _LONGEST_ERROR else f"{words[:_LONGEST_ERROR]} ...", print_exception=False
        )

    # Gradio reads the result's type from the signature, where it would be text.
    checked.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return checked


def _in_words(item: Any, parameters: list[str]) -> str:
    """What is wrong with one argument; a list's entry is named by its place."""
    first, *inner = item["loc"]
    argument = parameters[first] if isinstance(first, int) and first < len(parameters) else str(first)
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner)
    message = str(item["msg"])
    return f"{argument}{place}: {message[0].lower()}{message[1:]}, got {str(item['input'])[:60]!r}"


def _status(run: str, state: RunState) -> RunStatus:
    return RunStatus(
        run=run,
        status=state.status,
        step=state.step,
        total_steps=state.total_steps,
        loss=state.loss,
        steps_per_second=state.steps_per_second,
        eta_seconds=state.eta_seconds,
        last_error=state.last_error,
        adapter=state.adapter,
    )


def _find(runs_folder: Path, name: str) -> RunHandle:
    """The run of this name, which can't lead out of the folder of runs."""
    # Not printable are NUL, line ends and the halves of characters that no file system takes.
    is_name = name.isprintable() and Path(name).name == name and name not in ("", ".", "..")
    if not is_name or len(name.encode()) > 255:
        raise ConfigError("the run's name", [f"{name[:60]!r} is no name of a run: give the folder's name alone"])
    return runs.find(runs_folder / name)
