"""A whole run: check, prepare, train, validate, save, export. `train` begins one, `resume` goes on with one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from sdlora import atomic, disk
from sdlora.config.calls import Resume
from sdlora.config.files import validate
from sdlora.config.given import Values, train_config
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError, LostProcessError, OutOfMemoryError, RunError, SdloraError, TrainingError
from sdlora.events import (
    Event,
    EventSink,
    EventStream,
    RunFailed,
    RunFinished,
    RunStarted,
    StepFinished,
    checked_sinks,
)
from sdlora.processes import is_main_process
from sdlora.runs import changes, checkpoints, restarts
from sdlora.runs import folder as run_folder
from sdlora.runs.event_log import iterate_backwards
from sdlora.runs.folder import RunFolder
from sdlora.runs.lock import locked
from sdlora.runs.state import has_finished
from sdlora.sinks.at_end import AtEndSink
from sdlora.sinks.jsonl import JsonlSink
from sdlora.sinks.tensorboard import TensorBoardSink
from sdlora.sinks.terminal import TerminalSink
from sdlora.sinks.wandb import WandbSink
from sdlora.training.inputs import fingerprint
from sdlora.training.inputs.images import RunImages
from sdlora.training.inputs.preview_prompts import with_captions
from sdlora.training.loop.interrupts import Interrupts, StoppedEarly
from sdlora.training.loop.prepare import prepare
from sdlora.training.loop.running import Running, RunResult
from sdlora.training.outputs import checkpoint_state
from sdlora.training.preflight.checks import check
from sdlora.training.preflight.memory import DiskPlan, is_out_of_memory
from sdlora.training.shares import check_shares, in_words
from sdlora.training.workers import Workers
from sdlora.words import as_typed


class _LastStep:
    """Remembers how far the run had come, for the message of its failure."""

    def __init__(self, folder: RunFolder) -> None:
        newest = checkpoints.newest(folder)
        self.step = newest.step if newest else 0

    def emit(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.step = event.first_step
        elif isinstance(event, StepFinished):
            self.step = event.step

    def close(self) -> None:
        """There is nothing to close."""


class _StopBeforeSteps:
    """Ends the preparation at its next event when somebody asks for it: encoding thousands of images takes hours, and
    nothing of it is lost. Once training has begun, that looks after such requests."""

    def __init__(self, folder: RunFolder, interrupts: Interrupts) -> None:
        self._folder, self._interrupts = folder, interrupts
        self._is_over = False

    def emit(self, event: Event) -> None:
        self._is_over |= isinstance(event, RunStarted)
        if not self._is_over and (self._interrupts.seen or self._folder.take_requests(("stop",))):
            self._is_over = True
            raise StoppedEarly(is_asked=not self._interrupts.seen)

    def close(self) -> None:
        """There is nothing to close."""


def train(config: TrainConfig | Values | Path | str, sinks: Sequence[EventSink] = ()) -> RunResult:
    """Train a new adapter. Everything that can be checked is checked before the run's folder or a model is touched.

    config: settings, or a preset's name, a YAML file, or values as they stand in one: `train("demo.yaml")`,
    `train({"images": {"folder": "my_pictures"}, "captions": {"trigger": "ohwx"}})`.
    Raises the SdloraError of what is wrong, with every problem at once, and StoppedEarly (a KeyboardInterrupt) when it
    is stopped before the first step.
    """
    sinks = checked_sinks(sinks)
    config = train_config(config)
    workers = Workers(config.optimization.device)
    if begun := workers.share(restarts.begun(config.outputs.folder) if workers.is_main else None):
        return _go_on_after_restart(begun, sinks)
    with workers.together():
        check_shares(config.optimization, workers.count)
        images = check(config)
    config = with_captions(config, images.trained)
    # One process makes the folder; with a number added to a taken name, each of the others would make another.
    folder = workers.share(run_folder.create(config) if workers.is_main else None)
    assert folder is not None
    with _recorded(config, folder, sinks) as events:
        if workers.is_main:
            restarts.note(folder)
            fingerprint.write(folder.images, fingerprint.fingerprint([*images.trained, *images.held_out]))
        return _run(config, folder, images, events, workers, None)


def resume(
    path: Path | str,
    sinks: Sequence[EventSink] = (),
    *,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
) -> RunResult:
    """Go on with the run in a folder from its newest sound checkpoint, or from the start if it has none.

    overrides: settings to change from here on, as `section.name=value`; the run's history keeps those before.
    accept_changes: go on although images or captions are others than they were.
    Raises RunError when the run is complete, when another process trains it, and when images changed; ConfigError for
    a setting that can't change any more.
    """
    sinks = checked_sinks(sinks)
    asked = validate({"run": path, "accept_changes": accept_changes}, "resume", Resume)
    path, accept_changes = asked.run, asked.accept_changes
    folder = run_folder.find(path)
    config, changed = changes.planned(path, overrides)
    _refuse_complete(path, folder, config)
    with _recorded(config, folder, sinks) as events:
        # All processes have read the run by now, and from here on the main one alone changes what lies in its folder.
        workers = Workers(config.optimization.device)
        with workers.together():
            # Inside, so that a run that can't go on says so in its own log and events, where the page looks.
            check_shares(config.optimization, workers.count)
            images = check(config)
            found = _taken_up(folder, config, changed, images, events, accept_changes) if workers.is_main else None
        state = workers.share(found)
        return _run(with_captions(config, images.trained), folder, images, events, workers, state)


def _refuse_complete(path: Path, folder: RunFolder, config: TrainConfig) -> None:
    is_finished = folder.result(config).is_file()
    newest = checkpoints.newest(folder)
    if newest is None and is_finished:
        result = folder.result(config)
        start = f", if you like from this adapter: --set adapter.start_from={result}" if config.adapter.rank else "."
        raise RunError(
            f"{path}: this run is finished and its checkpoints are gone, so it can't go on, and from the start it "
            f"would write over {result.name}. Begin a new run{start}"
        )
    if newest is not None and is_finished and has_finished(folder):
        total_steps = check(config).total_steps(config)
        if newest.step >= total_steps:
            done = f"this run is complete: all {total_steps} steps are done"
            if newest.step > total_steps:
                done = f"this run has done {newest.step} steps, more than the {total_steps} that are asked for"
            raise RunError(
                f"{path}: {done}. To train it further: "
                + as_typed("sdlora", "resume", path, "--set", f"optimization.steps={2 * newest.step}")
            )


def _taken_up(
    folder: RunFolder,
    config: TrainConfig,
    changed: Sequence[changes.Change],
    images: RunImages,
    events: EventStream,
    accept_changes: bool,
) -> dict[str, Any] | None:
    """Compare what is there with what the run began with, write down what changed; returns the state to go on from."""
    accept_changes |= folder.takes_changes_accepted()
    _compare_images(folder, images, events, accept_changes=accept_changes, with_settings=bool(changed))
    found = checkpoint_state.newest_sound(folder, events.warn)
    if found is None and any(isinstance(event, StepFinished) for event in iterate_backwards(folder.events)):
        events.notice("no checkpoint was saved: the run begins again with the first step")
    # Only now: a run that is refused keeps the settings it had.
    changes.apply(folder, config, changed)
    for one in changed:
        events.notice(f"changed {one.sentence}")
    restarts.note(folder)
    previewed = with_captions(config, images.trained)
    if previewed != config:  # a run that was only prepared so far, as the page and the queue do
        run_folder.write_config(folder, previewed)
    total_steps = images.total_steps(config)
    if found is not None and found[0].step > total_steps:
        told = f"{found[0].step} steps are done, more than the {total_steps} that are asked for"
        events.warn(f"{told}: the run ends with what it has learned, and no step is taken back")
    # Another optimizer can't make sense of these moments; without them the new one begins with its own.
    if found is not None and any(one.name == "optimization.optimizer" for one in changed):
        found[1].pop("optimizer")
    return found and found[1]


def _go_on_after_restart(path: Path, sinks: Sequence[EventSink]) -> RunResult:
    """What `train` does where a launcher has started its processes again: the run is there already."""
    folder, config = run_folder.open_run(path)
    newest = checkpoints.newest(folder)
    if folder.result(config).is_file() and has_finished(folder) and newest is not None:
        # A process was lost after the last thing that had to be done.
        return RunResult(folder.path, "completed", newest.step, folder.result(config), False, None)
    return resume(path, sinks)


def _compare_images(
    folder: RunFolder, images: RunImages, events: EventStream, *, accept_changes: bool, with_settings: bool
) -> None:
    """Say what changed in the image folders since the run began; raises RunError unless that was accepted."""
    now = fingerprint.fingerprint([*images.trained, *images.held_out])
    before = fingerprint.read(folder.images)
    found = fingerprint.differences(before, now) if before is not None else []
    if before is None and checkpoints.newest(folder) is not None:
        events.warn(
            f"{folder.images.name} is missing or damaged, so it can't be told whether images or captions are others "
            "than when the run began"
        )
    if not accept_changes and not all(one.by_setting for one in found):
        listed = "\n  ".join(one.sentence for one in found)
        raise RunError(
            f"{folder.path}: since this run began\n  {listed}\nPut them back, or go on with what is there now: "
            f"{as_typed('sdlora', 'resume', folder.path, '--accept-changes')}"
            f"{' and the same --set' if with_settings else ''} (on the page: Continue with changes)"
        )
    for one in found:
        events.warn(f"since the run began {one.sentence}")
    if found:
        changes.record(folder, images="; ".join(one.sentence for one in found))
    if before is None or found:
        fingerprint.write(folder.images, now)


def _run(
    config: TrainConfig,
    folder: RunFolder,
    images: RunImages,
    events: EventStream,
    workers: Workers,
    state: dict[str, Any] | None,
) -> RunResult:
    started = time.time()
    with Interrupts() as interrupts:
        if workers.count == 1:  # of several, one that leaves alone is a lost one for the others
            events.sinks.append(_StopBeforeSteps(folder, interrupts))
        with workers.together():
            if workers.count > 1:
                events.notice(in_words(config.optimization, workers.count))
            prepared = prepare(config, images, events, workers)
            # Once more after the dry run: only now are the text encoder's and LoKr's values counted, not estimated.
            length = images.total_steps(config), images.steps_per_epoch(config)
            room = DiskPlan.of(config, prepared.adapter.trainable_parameters, *length)
            if problem := room.problem(config.outputs.folder):
                raise ConfigError("this run", [problem])
        run = Running(config, folder, images, prepared, events, workers, interrupts, started)
        if state is not None:
            run.trainer.load_state(state)
        return run.go()


@contextmanager
def _recorded(config: TrainConfig, folder: RunFolder, sinks: Sequence[EventSink]) -> Iterator[EventStream]:
    """The run's events, its end by an error included, to its own files and the caller's sinks.

    Claims the folder for this process. Nothing comes from other processes than the main one.
    """
    if not is_main_process():
        yield EventStream([])
        return
    with locked(folder), folder.log.open("a", encoding="utf-8", errors="backslashreplace") as log:
        last = _LastStep(folder)
        log_sink = TerminalSink(Console(file=log, highlight=False, soft_wrap=True, emoji=False))
        own: list[EventSink] = [JsonlSink(folder.events), log_sink, last]
        if config.outputs.tensorboard:
            own.append(TensorBoardSink(folder.path / "tensorboard"))
        if config.outputs.wandb:
            own.append(WandbSink(folder.path, config.outputs.wandb_project, config.model_dump(mode="json")))
        at_end = AtEndSink(folder.path, config.name, config.outputs.on_finish, config.outputs.webhook)
        stream = EventStream([*own, *sinks, at_end])  # last, so that everyone else has heard of the end before
        at_end.tell = stream.warn
        try:
            # The folder is locked, so whatever is half written here belongs to a process that was killed.
            atomic.sweep(folder.path)
            yield stream
        except StoppedEarly:
            stream.notice(f"to go on: {as_typed('sdlora', 'resume', folder.path)}")
            stream.emit(RunFinished(step=last.step, reason="stopped", adapter_path=None, seconds=0.0))
            raise
        except BaseException as error:
            told = _as_told(error, folder)
            with suppress(OSError):  # a full disk has no room for this either; `runs.state` finds out without it
                stream.emit(RunFailed(step=last.step, message=_in_words(told)))
            if told is error:
                raise
            raise told from error
        finally:
            stream.close()


def _as_told(error: BaseException, folder: RunFolder) -> BaseException:
    """The error as a person needs it: what the disk or the memory would not do, and how to go on."""
    if isinstance(error, OSError):
        reason = disk.explain(error, folder.path)
    elif isinstance(error, (OutOfMemoryError, LostProcessError)) or is_out_of_memory(error):
        reason = str(error)
    else:
        return error
    newest = checkpoints.newest(folder)
    saved = f"Step {newest.step} is saved" if newest else "Nothing is saved yet"
    kind = LostProcessError if isinstance(error, LostProcessError) else TrainingError
    return kind(f"{reason.removesuffix('.')}. {saved}: go on with `{as_typed('sdlora', 'resume', folder.path)}`")


def _in_words(error: BaseException) -> str:
    if isinstance(error, SdloraError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted before it could save"
    return f"{type(error).__name__}: {error}"
