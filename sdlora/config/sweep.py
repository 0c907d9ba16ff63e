"""What a sweep tries: which settings differ between its trainings, how their values are chosen, how many there are."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from sdlora.config import files, schema
from sdlora.config.section import Section
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["none", "median", "hyperband"]
_TELLING = ("validation", "outputs", "previews", "name", "base_model", "images.resolution", "images.folder", "seed")
"""Settings that change what is measured, or where it is written: trials that differ in them can't be compared."""


class Range(Section):
    """Numbers between two, both included: whole ones where both are."""

    low: int | float
    """The smallest."""

    high: int | float
    """The largest."""

    log: bool = False
    """Spread them by their logarithm, so that 1e-5 to 1e-4 counts as much as 1e-4 to 1e-3: for rates."""

    step: int | float | None = None
    """Distance between the numbers; by default 1 for whole ones and none for others."""

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
    """How many trainings; with `grid` there are as many as combinations."""

    prune: Pruner = "median"
    """End a training early when its validation loss is above the `median` of those before it at the same step, or by
    `hyperband` (Li et al. 2018)."""

    workers: int = Field(default=1, ge=1, le=64)
    """How many trainings run at the same time. They share the device."""

    seed: int = Field(default=0, ge=0)
    """Of the values that are chosen. The trainings' own seed is `train.seed`."""

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        problems = []
        for name in ("name", "outputs.folder"):
            if name in schema.dotted_names(self.train):
                problems.append(f"train.{name}: every trial has its own; leave it out")
        for name, values in self.vary.items():
            if schema.is_section(TrainConfig, name):
                problems.append(f"vary.{name}: is a section, which would be replaced; name one of its settings")
            elif any(name == each or name.startswith(f"{each}.") for each in _TELLING):
                problems.append(f"vary.{name}: changes what is measured, so that trials could not be compared")
            elif isinstance(values, Range):
                if self.sampler == "grid":
                    problems.append(f"vary.{name}: a grid needs a list of values, not a range")
            elif not values:
                problems.append(f"vary.{name}: has no values")
            elif len({repr(value) for value in values}) < len(values):
                problems.append(f"vary.{name}: holds a value twice")
        if self.sampler == "grid" and "trials" in self.model_fields_set and self.trials != self.num_trials:
            problems.append(f"trials: a grid has a trial for each of its {self.num_trials} combinations; leave it out")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def num_combinations(self) -> float:
        """How many different trainings there can be, infinite where a range has numbers between any two."""
        sizes = (values.size if isinstance(values, Range) else len(values) for values in self.vary.values())
        return math.prod(sizes)

    @property
    def num_trials(self) -> int:
        """How many trainings there will be."""
        lists = [values for values in self.vary.values() if not isinstance(values, Range)]
        return math.prod(map(len, lists)) if self.sampler == "grid" else self.trials


def read(path: Path) -> SweepConfig:
    """The sweep in a YAML file. Raises ConfigError listing every problem, those of the trainings too."""
    sweep = files.validate(files.read_yaml(path), str(path), SweepConfig)
    # Its own name is the best adapter's, so that it must be one that a training takes.
    plain = {**_plain_values(sweep, path), "name": sweep.name}
    problems: dict[str, list[str]] = {}
    samples = _samples(sweep)
    for chosen in samples:
        try:
            config = _trained(plain, chosen, "a trial")
        except ConfigError as error:
            shown = ", ".join(f"{name}={value}" for name, value in chosen.items())
            for problem in error.problems:
                problems.setdefault(problem, []).append(shown)
        else:
            if config.validation.folder is None and not config.validation.fraction:
                told = "train: set validation.fraction or validation.folder: trials are compared by that loss"
                problems[told] = [""] * len(samples)
    if sweep.sampler != "grid" and sweep.trials > (most := sweep.num_combinations()):
        told = (
            f"trials: {sweep.trials} are more than the {most:g} combinations there are, so that some would be trained"
            " twice; set fewer, or sampler=grid"
        )
        problems[told] = [""] * len(samples)
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
    plain = _plain_values(sweep, path)
    for setting, value in {"name": name, "outputs.folder": str(folder)}.items():
        schema.put(plain, setting, value, TrainConfig)
    return files.with_files_read(_trained(plain, chosen, name))


def first_config(sweep: SweepConfig, path: Path) -> TrainConfig:
    """One of the trainings, to look at what all of them share."""
    return trial_config(sweep, path, _samples(sweep)[0], sweep.name, sweep.folder)


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


def _samples(sweep: SweepConfig) -> list[dict[str, Any]]:
    """Combinations that hold every value of every list and both ends of every range, where few: all of them."""
    ends = {
        name: (values.low, values.high) if isinstance(values, Range) else values for name, values in sweep.vary.items()
    }
    if math.prod(map(len, ends.values())) <= 64:
        return [dict(zip(ends, each, strict=True)) for each in product(*ends.values())]
    first = {name: values[0] for name, values in ends.items()}
    return [first | {name: value} for name, values in ends.items() for value in values]
