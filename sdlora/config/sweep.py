"""What a sweep tries: which settings differ between its trainings, how their values are chosen, how many there are."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from sdlora.config import files, schema, without_effect
from sdlora.config.section import Section
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.words import count, first_few

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["none", "median", "hyperband"]
_MEASURED = (
    "validation", "base_model", "seed", "adapter.new_tokens",
    *(f"images.{name}" for name in ("folder", "folders", "resolution", "buckets", "bucket_step", "bucket_min",
                                    "bucket_max", "upscale", "crop_focus", "background", "inpaint_mask",
                                    "max_unreadable", "max_megapixels")),
    *(f"captions.{name}" for name in ("default", "trigger", "prefix", "suffix", "extension", "max_tokens", "weights")),
)  # fmt: skip
"""Settings that change which held-out images and captions are measured, or by what: trials can't be compared."""
_UNTRAINED = ("name", "outputs", "previews")
"""Settings that change nothing of what is learned."""


class Range(Section):
    """Numbers between two, both included."""

    low: int | float
    """The smallest."""

    high: int | float
    """The largest."""

    log: bool = False
    """Spread them by their logarithm, so that 1e-5 to 1e-4 counts as much as 1e-4 to 1e-3: for rates."""

    step: int | float | None = None
    """Distance between the numbers; by default 1 for a setting that takes whole ones only, and none for others."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 with log, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("step and log exclude each other")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, got {self.step:g}")
        if self.is_whole and isinstance(self.step, float):
            raise ValueError(f"step must be a whole number between whole numbers, got {self.step:g}")
        if self.step is not None and not math.isclose(self.low + (self.size - 1) * self.step, self.high):
            last = self.low + (self.size - 1) * self.step
            raise ValueError(f"steps of {self.step:g} from {self.low:g} miss high {self.high:g}; the last is {last:g}")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> float:
        """How many numbers it holds; infinite without a step between numbers that aren't whole."""
        step = self.step or (1 if self.is_whole else 0)
        return math.floor((self.high - self.low) / step + 1e-9) + 1 if step else math.inf


def _kind_of_values(values: Any) -> str:
    return "Range" if isinstance(values, dict | Range) else "tuple"


Values = Annotated[
    Annotated[tuple[Any, ...], Tag("tuple")] | Annotated[Range, Tag("Range")], Discriminator(_kind_of_values)
]
"""A list of values, or a range of numbers."""


class SweepConfig(Section):
    name: str = "sweep"
    """The sweep's folder inside `folder`, and the name of the best adapter's file."""

    folder: Path = Path("sweeps")
    """Where sweeps are kept."""

    preset: str | None = None
    """What every trial trains: a preset's name, or a YAML file (looked for beside this one first)."""

    train: dict[str, Any] = Field(default_factory=dict)
    """Settings on top of the preset's, as in a training's YAML file."""

    vary: dict[str, Values] = Field(min_length=1)
    """The settings that differ, each with a list of values or with a range:
    {adapter.rank: [4, 8, 16], optimization.learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}}."""

    sampler: Sampler = "tpe"
    """How values are chosen: `tpe` near those that did well (Bergstra et al. 2011), `random`, or `grid`, every
    combination once."""

    trials: int = Field(default=20, ge=1, le=10_000)
    """How many trainings; by default no more than there are combinations, with `grid` always as many."""

    prune: Pruner = "median"
    """End a training early when its validation loss is above the `median` of those before it at the same step, or by
    `hyperband` (Li et al. 2018)."""

    workers: int = Field(default=1, ge=1, le=64)
    """How many trainings run at the same time. They share the device."""

    seed: int = Field(default=0, ge=0)
    """Of the values that are chosen. The trainings' own seed is `train.seed`."""

    @field_validator("vary", mode="before")
    @classmethod
    def _in_full_names(cls, vary: Any) -> Any:
        """A section with settings in it, as `train` has them, would be taken for a range without ends."""
        problems = []
        for name, values in vary.items() if isinstance(vary, Mapping) else ():
            if isinstance(values, Mapping) and schema.is_section(TrainConfig, str(name)):
                inside = [f"{name}.{one}" for one in values]
                meant = f": {first_few(inside)}" if inside else ""
                problems.append(f"{name}: is a section; write the full name of each of its settings that varies{meant}")
        if problems:
            raise ValueError("\n".join(problems))
        return vary

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        problems = []
        shared = schema.dotted_names(self.train)
        for name in ("name", "outputs.folder"):
            if name in shared:
                problems.append(f"train.{name}: every trial has its own; leave it out")
        for name, values in self.vary.items():
            problems += [f"vary.{name}: {said}" for said in self._wrong_with(name, values)]
            rivals = [other for pair in files.EXCLUSIVE if name in pair for other in pair]
            problems += [
                f"train.{each}: is overruled by vary.{name}; leave one of them out"
                for each in shared
                if each.startswith(f"{name}.") or each in (name, *rivals)
            ]
        if self.sampler == "grid" and self.has_own_number and self.trials != self.num_trials:
            problems.append(f"trials: a grid has a trial for each of its {self.num_trials} combinations; leave it out")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _wrong_with(self, name: str, values: Values) -> Iterator[str]:
        """What is wrong with the values of a setting, as far as its name and theirs tell."""
        if schema.is_section(TrainConfig, name):
            yield "is a section, which would be replaced; name one of its settings"
            return
        if _is_among(name, _MEASURED):
            yield "changes what is measured, so that trials could not be compared"
        elif _is_among(name, _UNTRAINED):
            yield "changes nothing of what is learned, so that trials would be the same"
        if not isinstance(values, Range):
            if not values:
                yield "has no values"
            return
        if self.sampler == "grid":
            yield "a grid needs a list of values, not a range"
        setting = schema.find(TrainConfig, name)
        low, high = f"{values.low:g}", f"{values.high:g}"
        if setting is None or not setting.is_number:
            return
        if float not in setting.kinds and not values.is_whole:
            yield f"takes whole numbers only, so that low and high must be whole, got {low} and {high}"
        if float in setting.kinds and values.is_whole and values.step is None:
            # By the rule for whole ends a range from 0 to 1 would try these two alone.
            yield (
                f"takes numbers with a point, too: write low: {low}.0 and high: {high}.0 for all between,"
                " or step: 1 for whole ones"
            )

    @property
    def has_own_number(self) -> bool:
        """Whether the file says how many trainings there are."""
        return "trials" in self.model_fields_set

    def num_combinations(self) -> float:
        """How many different trainings there can be, infinite where a range has numbers between any two."""
        sizes = (values.size if isinstance(values, Range) else len(values) for values in self.vary.values())
        return math.prod(sizes)

    @property
    def num_trials(self) -> int:
        """How many trainings there will be."""
        if self.sampler == "grid":
            return math.prod(len(values) for values in self.vary.values() if not isinstance(values, Range))
        most = self.num_combinations()
        return self.trials if self.has_own_number or self.trials <= most else int(most)


def read(path: Path) -> SweepConfig:
    """The sweep in a YAML file. Raises ConfigError listing every problem, those of the trainings too."""
    sweep = files.validate(files.read_yaml(path), str(path), SweepConfig)
    # Its own name is the best adapter's, so that it must be one that a training takes.
    plain = {**_plain_values(sweep, path), "name": sweep.name}
    problems: dict[str, list[str]] = {}
    samples = _samples(sweep)
    checked: list[tuple[dict[str, Any], TrainConfig]] = []
    for chosen in samples:
        try:
            config = _trained(plain, chosen, "a trial")
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(_shown(chosen))
        else:
            checked.append((chosen, config))
            if config.validation.folder is None and not config.validation.fraction:
                told = "train: set validation.fraction or validation.folder: trials are compared by that loss"
                problems[told] = [""] * len(samples)
    told_of_all = list(_same_twice(sweep, checked))
    told_of_all += [f"vary.{name}: {said}" for name, said, where in _idle(sweep, checked) if where is None]
    if sweep.sampler != "grid" and sweep.num_trials > (most := sweep.num_combinations()):
        told_of_all.append(
            f"trials: {sweep.trials} are more than the {count(int(most), 'combination')} there"
            f" {'is' if most == 1 else 'are'}, so that some would be trained twice; set fewer, or sampler=grid"
        )
    problems |= {told: [""] * len(samples) for told in told_of_all}
    if problems:
        # What is wrong with all of them is no fault of the values.
        raise ConfigError(
            str(path),
            [
                problem if len(where) == len(samples) else f"{problem} (with {where[0]})"
                for problem, where in problems.items()
            ],
        )
    return sweep


def trial_config(sweep: SweepConfig, path: Path, chosen: Mapping[str, Any], name: str, folder: Path) -> TrainConfig:
    """The configuration of the training that has these values. path: the sweep's file. Raises ConfigError."""
    plain = copy.deepcopy(_plain_values(sweep, path))  # its sections are those of the sweep, which is written down
    for setting, value in {"name": name, "outputs.folder": str(folder)}.items():
        schema.put(plain, setting, value, TrainConfig)
    return files.with_files_read(_trained(plain, chosen, name))


def first_config(sweep: SweepConfig, path: Path) -> TrainConfig:
    """One of the trainings, to look at what all of them share."""
    return trial_config(sweep, path, _samples(sweep)[0], sweep.name, sweep.folder)


def remarks(sweep: SweepConfig, path: Path) -> list[str]:
    """What is not as it may be meant and keeps nobody from running it. path: the sweep's file."""
    plain = _plain_values(sweep, path)
    checked = [(chosen, _trained(plain, chosen, "a trial")) for chosen in _samples(sweep)]
    found = [f"vary.{name}: {said} (with {where})" for name, said, where in _idle(sweep, checked) if where]
    if sweep.prune != "none":
        # Where steps are a matter of epochs, how many there are is known to the run alone.
        lengths = [(config.validation.every, config.optimization.steps) for _, config in checked]
        if all(isinstance(every, int) and steps and (not every or every >= steps) for every, steps in lengths):
            found.append(
                f"prune={sweep.prune} has no effect: a trial is measured at its end only"
                f" (validation.every={lengths[0][0]}); a smaller one lets hopeless trainings be ended early"
            )
    return found


def _plain_values(sweep: SweepConfig, path: Path) -> dict[str, Any]:
    own = dict(sweep.train)
    if sweep.preset is not None:
        own = {"preset": sweep.preset, **own}
    return files.on_preset(own, str(path), path.parent)


def _trained(plain: Mapping[str, Any], chosen: Mapping[str, Any], source: str) -> TrainConfig:
    values = files.without_rivals(copy.deepcopy(dict(plain)), list(chosen))
    problems = []
    for name, value in chosen.items():
        try:
            schema.put(values, name, value, TrainConfig)
        except ValueError as error:
            problems.append(f"vary.{name}: {error}")
    if problems:
        raise ConfigError(source, problems)
    return files.validate(values, source)


def _same_twice(sweep: SweepConfig, checked: Sequence[tuple[Mapping[str, Any], TrainConfig]]) -> Iterator[str]:
    """A problem for each list that has a value twice, spelled alike or not: YAML reads 1e-3 as text."""
    for name, values in sweep.vary.items():
        if isinstance(values, Range):
            continue
        meant = {repr(chosen[name]): schema.flatten(config).get(name, chosen[name]) for chosen, config in checked}
        by_meaning: dict[str, list[str]] = {}
        for value in values:
            by_meaning.setdefault(repr(meant.get(repr(value), value)), []).append(str(value))
        for spelled in by_meaning.values():
            if len(spelled) > 1:
                yield f"vary.{name}: holds a value twice: {' and '.join(spelled)}"


def _idle(
    sweep: SweepConfig, checked: Sequence[tuple[Mapping[str, Any], TrainConfig]]
) -> Iterator[tuple[str, str, str | None]]:
    """Varied settings that nothing reads, why, and beside which other values: None where beside all of them."""
    for name in filter(partial(schema.find, TrainConfig), sweep.vary):
        read = 0
        idle: list[tuple[str, Mapping[str, Any]]] = []
        for chosen, config in checked:
            # A default is never told of, as it was hardly meant; here it says nothing either way.
            if not without_effect.is_written(config, name):
                continue
            if told := [each for each in without_effect.in_training(config) if each.startswith(f"{name} ")]:
                idle.append((told[0], chosen))
            else:
                read += 1
        if idle:
            said, chosen = idle[0]
            beside = {other: value for other, value in chosen.items() if other != name}
            yield name, said, _shown(beside) if read else None


def _shown(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in chosen.items())


def _is_among(name: str, sections: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in sections)


def _samples(sweep: SweepConfig) -> list[dict[str, Any]]:
    """Combinations that hold every value of every list and both ends of every range, where few: all of them."""
    ends = {
        name: (values.low, values.high) if isinstance(values, Range) else values for name, values in sweep.vary.items()
    }
    if math.prod(map(len, ends.values())) <= 64:
        return [dict(zip(ends, each, strict=True)) for each in product(*ends.values())]
    first = {name: values[0] for name, values in ends.items()}
    return [first | {name: value} for name, values in ends.items() for value in values]
