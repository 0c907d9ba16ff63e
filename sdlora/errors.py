"""Errors a user can meet. Each says what is wrong, the value seen and what to do.

SdloraError
├── ConfigError         a setting, preset or command-line value; lists every problem at once
├── DataError           images, captions, masks or caches
├── ModelError          the base model: not found, unreadable, of an unknown family
├── AdapterError        an adapter file or an adapter that does not fit
├── RunError            a run's folder: in use by another process, or not in the state asked for
├── MissingPackageError an optional package is not installed
└── TrainingError       a run that began and could not go on (exit code 1, the others 2)
    ├── OutOfMemoryError     the device has too little memory for a step; the weights are as before it
    └── LostProcessError     another of the processes that train together is gone
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def how_to_install(extra: str) -> str:
    """The command that adds an extra to this installation, be it a clone or the package from an index."""
    is_clone = (Path(__file__).parents[1] / "pyproject.toml").is_file()
    return f"pip install -e '.[{extra}]'" if is_clone else f"pip install 'sdlora[{extra}]'"


class SdloraError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 2
    is_told = False
    """Whether the main process of those that train together tells it already."""


class ConfigError(SdloraError):
    """One or more settings are wrong. `problems` holds one sentence each."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"{source} has {count}:", *self.problems]))


class DataError(SdloraError):
    """Images, captions, masks or a cache can't be used."""


class ModelError(SdloraError):
    """A base model can't be found, read or recognised."""


class AdapterError(SdloraError):
    """An adapter file can't be read, or doesn't fit the model."""


class RunError(SdloraError):
    """A run is in use by another process, or not in the state that was asked for."""


class MissingPackageError(SdloraError):
    """A feature needs a package that is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed. "
            f"Run: {how_to_install(extra)}  (or: pip install {package})"
        )


class TrainingError(SdloraError):
    """A run began and could not go on."""

    exit_code = 1


class OutOfMemoryError(TrainingError):
    """The device has too little memory for a step of this run; the weights are as they were before it."""


class LostProcessError(TrainingError):
    """Another of the processes that train together is gone, or can't be reached any more."""

    exit_code = 3
