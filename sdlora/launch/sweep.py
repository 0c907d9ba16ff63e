"""A sweep: many trainings that differ in a few settings, compared by their loss on held-out images.

Which values come next, and which training is ended early, is Optuna's to say (Akiba et al. 2019). Its journal, the runs
and a table lie in the sweep's folder, so that a sweep that was interrupted goes on where it was.

    sweeps/rates/
      sweep.yaml       what it was begun with
      shared.yaml      one of the trainings in full, as the preset it builds on may change
      journal.log      Optuna's own record
      runs/trial-000/  an ordinary run for each trial
      sweep.csv        a row for each trial, best first
      best.yaml        the best trial's settings, a preset
      rates.safetensors  its adapter
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from filelock import FileLock, Timeout

from sdlora import atomic, disk
from sdlora.config import files, schema
from sdlora.config.sweep import Range, SweepConfig, first_config, read, remarks, trial_config
from sdlora.data.batches import derive_seed
from sdlora.errors import ConfigError, MissingPackageError, RunError, SdloraError
from sdlora.events import Validated
from sdlora.launch.runs import RunHandle, prepare, refuse_commands
from sdlora.runs.state import RunStatus
from sdlora.training.preflight.checks import check
from sdlora.words import first_few

if TYPE_CHECKING:
    import optuna

_LOOK_SECONDS = 0.5
_FAILURES = 3
"""Trainings that may fail one after another before the sweep gives up."""
_RUN, _REASON, _PRUNED = "run", "reason", "pruned"
"""What is noted of a trial beside its values."""

TrialState = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    number: int
    state: TrialState
    values: dict[str, Any]
    relative_loss: float | None
    """The lowest on held-out images, relative to the base model's; None before the first."""
    step: int | None
    """Where that was."""
    run: Path | None
    seconds: float
    reason: str = ""
    """Why it failed."""


@dataclass
class _Running:
    trial: optuna.Trial
    handle: RunHandle
    offset: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    """Relative, by step; those before the first step, where all trainings are alike, are not among them."""
    resumes_once: RunStatus | None = None
    """How it may yet end by what ended the sweep before, since it was taken up while its process still lived."""

    @property
    def is_pruned(self) -> bool:
        return _PRUNED in self.trial.user_attrs


class Sweep:
    """A sweep by its file. Raises ConfigError for one that can't be run, MissingPackageError without Optuna."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.config = read(self.path)
        self.folder = (self.config.folder / self.config.name).resolve()
        if problem := disk.why_not_writable(self.folder):
            raise ConfigError(str(self.path), [f"folder: {problem}"])
        refuse_commands(first_config(self.config, self.path))
        self.remarks = remarks(self.config, self.path)
        """What is not as it may be meant."""
        self._refuse_other_sweep()

    def run(self, tell: Callable[[Trial], None] = lambda trial: None) -> list[Trial]:
        """Train until all trials are done; `tell` is called as each begins and ends. Returns them, best first.

        Interrupted, it asks what runs to save and stop, and goes on with it the next time. Raises RunError when the
        sweep runs already, or when its trainings fail one after another; before the first one what `train` would.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            atomic.sweep(self.folder)
            for left in self.folder.glob("journal.log.lock*"):  # Optuna's, of a killed process; it would wait for it
                left.unlink(missing_ok=True)
            atomic.write_text(self.folder / "sweep.yaml", _as_yaml(self.config))
            atomic.write_text(self.folder / "shared.yaml", self._shared())
            self._cut_journal()
            study = self._study(is_new=True)
            if not _begun(study):
                check(first_config(self.config, self.path))
            if self.config.sampler == "grid":
                _ask_for_all(study, self.config)
            running: list[_Running] = []
            try:
                self._go_on(study, running)
                self._train(study, running, tell)
            except BaseException:
                _stop(running)
                raise
            finally:
                self._write(study)
        return self.trials()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.folder / "sweep.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{self.folder} is being run already by another process") from None
        try:
            yield
        finally:
            lock.release()

    @property
    def _runs(self) -> Path:
        return self.folder / "runs"

    def trials(self) -> list[Trial]:
        """The trials so far, best first."""
        return _ranked(_begun(self._study()))

    def begun(self) -> list[Trial]:
        """The trials of former calls, in their order; nothing is written for a sweep that has not begun."""
        journal = self.folder / "journal.log"
        begun = _begun(self._study()) if journal.is_file() and b"\n" in journal.read_bytes() else []
        return sorted(begun, key=lambda trial: trial.number)

    def _study(self, *, is_new: bool = False) -> optuna.Study:
        """Optuna's study; one that may be new is begun. Else nothing is written, as another process may be at it."""
        optuna = _optuna()
        journal = self.folder / "journal.log"
        how = {"study_name": self.config.name, "sampler": self._sampler(0), "pruner": self._pruner()}
        try:
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
            if is_new:
                return optuna.create_study(storage=storage, load_if_exists=True, direction="minimize", **how)
            return optuna.load_study(storage=storage, **how)
        except (ValueError, KeyError, TypeError, AssertionError) as error:  # whatever Optuna's reader stumbles over
            raise RunError(
                f"{journal} is damaged ({type(error).__name__}): move {self.folder} away and begin anew; its runs stay"
                " usable"
            ) from error

    def _cut_journal(self) -> None:
        """Take away a last line that a kill left unfinished, to which Optuna would add the next."""
        journal = self.folder / "journal.log"
        if journal.is_file() and not (content := journal.read_bytes()).endswith(b"\n"):
            atomic.write_bytes(journal, content[: content.rfind(b"\n") + 1])

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """For the trial of this number: a sweep that is gone on with would else draw what it has drawn before."""
        samplers, config = _optuna().samplers, self.config
        seed = derive_seed(config.seed, "trial", number) % 2**32
        if config.sampler != "tpe":  # of a grid every combination is asked for
            return samplers.RandomSampler(seed=seed)
        # With several at once those that still run count as bad, so that two don't try nearly the same.
        return samplers.TPESampler(seed=seed, constant_liar=config.workers > 1)

    def _pruner(self) -> optuna.pruners.BasePruner:
        pruners = _optuna().pruners
        if self.config.prune == "median":
            return pruners.MedianPruner(n_startup_trials=3, n_min_trials=3)
        return pruners.HyperbandPruner() if self.config.prune == "hyperband" else pruners.NopPruner()

    def _refuse_other_sweep(self) -> None:
        """Raise ConfigError where trials of other settings lie, which can't be compared with these."""
        before = self.folder / "sweep.yaml"
        if not before.exists():
            return
        kept = files.validate(files.read_yaml(before), str(before), SweepConfig)
        free = {"trials", "workers", "folder"}
        told, now = (schema.by_name(config.model_dump(exclude=free)) for config in (kept, self.config))
        changed, of = [name for name, _ in schema.differing([told, now])], "other settings"
        shared = self.folder / "shared.yaml"
        if not changed and shared.exists():
            # By their values: what another version of sdlora wrote lacks the settings that are new since.
            before_it = files.validate(files.read_yaml(shared), str(shared))
            now_it = first_config(self.config, self.path)
            changed = [name for name, _ in schema.differing([schema.flatten(before_it), schema.flatten(now_it)])]
            of = "another preset's settings, which have changed since"
        if changed:
            raise ConfigError(
                str(self.path),
                [
                    f"name: {self.folder} holds a sweep of {of} ({first_few(changed)}): give this one another name, or"
                    " delete that"
                ],
            )

    def _shared(self) -> str:
        """What all trainings have in common, with what they build on."""
        return files.dump(first_config(self.config, self.path))

    def _go_on(self, study: optuna.Study, running: list[_Running]) -> None:
        """Take up the trials that were under way when the sweep was interrupted."""
        optuna = _optuna()
        for frozen in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            trial = optuna.trial.Trial(study, frozen._trial_id)  # there is no public way to take one up again
            folder = frozen.user_attrs.get(_RUN)
            if folder is None or not Path(folder).is_dir():  # killed before it had a run: its values are tried again
                if (unbegun := self._runs / _run_name(frozen.number)).is_dir():
                    atomic.discard(unbegun)
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial({**frozen.system_attrs.get("fixed_params", {}), **frozen.params})
                continue
            handle = RunHandle(Path(folder))
            state = handle.state()
            one = _Running(trial, handle, losses=dict(frozen.intermediate_values))
            if state.is_active:
                one.resumes_once = "stopped" if state.status == "stopping" else "crashed"
            elif state.status not in ("finished", "failed") and not one.is_pruned:
                handle.resume()
            running.append(one)

    def _train(self, study: optuna.Study, running: list[_Running], tell: Callable[[Trial], None]) -> None:
        failures = 0
        while running or len(_begun(study)) < self.config.num_trials:
            while len(running) < self.config.workers and len(_begun(study)) < self.config.num_trials:
                running.append(self._begin(study))
                tell(_as_trial(study.get_trials(deepcopy=False)[running[-1].trial.number]))
            time.sleep(_LOOK_SECONDS)
            for one in list(running):
                if not self._is_over(study, one):
                    continue
                running.remove(one)
                ended = _as_trial(study.get_trials(deepcopy=False)[one.trial.number])
                failures = failures + 1 if ended.state == "failed" else 0
                self._write(study)
                tell(ended)
                if failures == _FAILURES:
                    raise RunError(f"{failures} trainings failed one after another, the last with: {ended.reason}")

    def _begin(self, study: optuna.Study) -> _Running:
        trial, chosen = self._ask(study)
        if (fresh := self._untried_instead_of(study, chosen)) is not None:
            # What was trained before would come out the same. Without a run this one doesn't count as a trial.
            study.tell(trial, state=_optuna().trial.TrialState.FAIL)
            study.enqueue_trial(fresh)
            trial, chosen = self._ask(study)
        config = trial_config(self.config, self.path, chosen, _run_name(trial.number), self._runs)
        handle = prepare(config)
        # On record before it begins: whoever kills the sweep here finds a run that was only prepared, and begins it.
        trial.set_user_attr(_RUN, str(handle.folder))
        handle.resume()
        return _Running(trial, handle)

    def _ask(self, study: optuna.Study) -> tuple[optuna.Trial, dict[str, Any]]:
        study.sampler = self._sampler(len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        return trial, {name: _chosen(trial, name, values) for name, values in self.config.vary.items()}

    def _untried_instead_of(self, study: optuna.Study, chosen: Mapping[str, Any]) -> dict[str, Any] | None:
        """Other values as Optuna takes them, by chance, where those chosen have been tried; None where they haven't."""
        begun = _begun(study)
        tried = [trial.values for trial in begun]
        if chosen not in tried or len(tried) >= self.config.num_combinations():
            return None
        chance = random.Random(derive_seed(self.config.seed, "untried", len(begun)))
        while True:
            fresh = {name: _by_chance(values, chance) for name, values in self.config.vary.items()}
            if {name: _told(value) for name, value in fresh.items()} not in tried:
                return fresh

    def _is_over(self, study: optuna.Study, one: _Running) -> bool:
        """Read what a training has told since; report its losses, prune it, and close its trial when it has ended."""
        states = _optuna().trial.TrialState
        # In this order: what a process writes last is written before it is gone.
        state = one.handle.state()
        events, one.offset = one.handle.events(one.offset)
        news = [event for event in events if isinstance(event, Validated) and event.step not in {0, *one.losses}]
        for event in news:
            one.losses[event.step] = event.relative_loss
            one.trial.report(event.relative_loss, event.step)
        if state.is_active:
            if news and state.status == "running" and not one.is_pruned and one.trial.should_prune():
                one.trial.set_user_attr(_PRUNED, True)
                one.handle.stop()
            return False
        if state.status == one.resumes_once and not one.is_pruned:
            one.resumes_once = None
            one.handle.resume()
            return False
        if state.status == "finished" and one.losses:
            study.tell(one.trial, min(one.losses.values()))
        elif one.is_pruned:
            study.tell(one.trial, state=states.PRUNED)
        else:
            one.trial.set_user_attr(_REASON, state.last_error or f"it is {state.status}")
            study.tell(one.trial, state=states.FAIL)
        return True

    def _write(self, study: optuna.Study) -> None:
        """What belongs to the best trial, then the table: what it lists is there, wherever a full disk ends this."""
        trials = _ranked(_begun(study))
        self._write_best(trials)
        names, text = list(self.config.vary), io.StringIO()
        table = csv.writer(text)
        table.writerow(["trial", "state", "relative_loss", "step", *names, "seconds", "run", "reason"])
        for trial in trials:
            values = [_shown(trial.values.get(name)) for name in names]
            loss = "" if trial.relative_loss is None else f"{trial.relative_loss:.6f}"
            where = [f"{trial.seconds:.0f}", trial.run or "", trial.reason]
            table.writerow([trial.number, trial.state, loss, trial.step or "", *values, *where])
        atomic.write_text(self.folder / "sweep.csv", text.getvalue())

    def _write_best(self, trials: Sequence[Trial]) -> None:
        best = trials[0] if trials and trials[0].state == "complete" else None
        if best is None or best.run is None:
            return
        handle = RunHandle(best.run)
        adapter = handle.files.result(handle.config())
        if not adapter.is_file():
            return
        for path in (adapter, adapter.with_suffix(".json"), adapter.with_suffix(".png")):
            if path.is_file():
                atomic.copy_file(path, self.folder / f"{self.config.name}{path.suffix}")
        config = handle.config().model_copy(update={"name": self.config.name})
        settings = yaml.safe_load(files.dump(config, only_changes=True))
        settings["outputs"].pop("folder")
        settings = {name: value for name, value in settings.items() if value != {}}
        head = f"# Purpose: the best of {len(trials)} trials of {self.config.name}: {_described(best.values)}\n"
        atomic.write_text(self.folder / "best.yaml", head + yaml.safe_dump(settings, sort_keys=False, width=110))


def _run_name(number: int) -> str:
    return f"trial-{number:03}"


def _stop(running: list[_Running]) -> None:
    """Ask what runs to save and stop, and wait for it."""
    for one in running:
        with suppress(SdloraError):  # it has ended, perhaps only just now
            one.handle.stop()
    while any(one.handle.state().is_active for one in running):
        time.sleep(_LOOK_SECONDS)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingPackageError("sdlora sweep", "optuna", "sweep") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _ask_for_all(study: optuna.Study, config: SweepConfig) -> None:
    """Every combination of the lists, once however often it is asked for."""
    lists = {name: _choices(values) for name, values in config.vary.items()}
    for combination in product(*lists.values()):
        study.enqueue_trial(dict(zip(lists, combination, strict=True)), skip_if_exists=True)


def _begun(study: optuna.Study) -> list[Trial]:
    """The trials that have a run; one that was cut off before it had is tried again."""
    return [_as_trial(trial) for trial in study.get_trials(deepcopy=False) if _RUN in trial.user_attrs]


def _chosen(trial: optuna.Trial, name: str, values: Any) -> Any:
    if not isinstance(values, Range):
        return json.loads(trial.suggest_categorical(name, _choices(values)))
    if values.is_whole:
        return trial.suggest_int(name, int(values.low), int(values.high), step=int(values.step or 1), log=values.log)
    step = None if values.step is None else float(values.step)
    return trial.suggest_float(name, float(values.low), float(values.high), step=step, log=values.log)


def _choices(values: Any) -> list[str]:
    """As JSON: Optuna takes texts and numbers only, and a setting may be a list."""
    return [json.dumps(value, ensure_ascii=False) for value in values]


def _by_chance(values: Any, chance: random.Random) -> Any:
    """One of the values of a list, or of a range that has not infinitely many."""
    if not isinstance(values, Range):
        return chance.choice(_choices(values))
    step = values.step or 1
    return values.low + chance.randrange(int(values.size)) * step


def _told(value: Any) -> Any:
    """A value as Optuna keeps it, made what it stands for."""
    return json.loads(value) if isinstance(value, str) else value


def _as_trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    names: dict[str, TrialState] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    losses = {step: loss for step, loss in frozen.intermediate_values.items() if math.isfinite(loss)}
    step = min(losses, key=lambda each: losses[each]) if losses else None
    begun, ended = frozen.datetime_start, frozen.datetime_complete
    folder = frozen.user_attrs.get(_RUN)
    return Trial(
        frozen.number,
        names.get(frozen.state.name, "running"),
        {name: _told(value) for name, value in frozen.params.items()},
        None if step is None else losses[step],
        step,
        Path(folder) if folder else None,
        max(0.0, (ended - begun).total_seconds()) if begun and ended else 0.0,  # clocks are set back, too
        str(frozen.user_attrs.get(_REASON, "")),
    )


def _ranked(trials: list[Trial]) -> list[Trial]:
    """Those that came to their end first, the best of each kind before the others."""
    order: dict[TrialState, int] = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}
    return sorted(trials, key=lambda one: (order[one.state], one.relative_loss or math.inf, one.number))


def _as_yaml(config: SweepConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _described(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in values.items())
