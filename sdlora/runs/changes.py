"""Going on with a run under other settings: what may change, what that means, and the record of it.

Each change keeps the configuration before it as `config.history/0001.yaml`, with `0001.json` beside it: when, at which
step, which settings, from what to what.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdlora import atomic
from sdlora.config import files, schema
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.runs import checkpoints
from sdlora.runs.folder import RunFolder, open_run, with_absolute_paths, write_config

_FIXED = {
    "adapter.": "the adapter's shape can't change once it is trained",
    "base_model.model": "an adapter belongs to the base model it began on",
    "base_model.adapters": "an adapter belongs to the base model it began on",
    "base_model.family": "an adapter belongs to the family it began in",
    "base_model.prediction": "an adapter belongs to the prediction it began with",
    "name": "the run's files carry its name",
    "outputs.folder": "the run lies where it lies",
}
"""Settings, or beginnings of their names, that a run keeps for ever, and why."""
# It has no weights, so nothing that is trained depends on it.
_FREE_IN_ADAPTER = ("adapter.dropout",)
_NOTES = {
    "optimization.optimizer": "its state begins afresh",
    "seed": "noise, crops and the order of images are others from here on",
    "images.resolution": "images are encoded anew, and an epoch has other batches",
    "images.folder": "an epoch has other batches",
    "images.folders": "an epoch has other batches",
    "images.repeats": "an epoch has other batches",
    "optimization.batch_size": "an epoch has other batches, so the count of epochs jumps",
    "optimization.accumulation": "a step is made of another number of batches from here on",
    "validation.folder": "validation is measured on other images, so its curve breaks",
    "validation.fraction": "images that are held out now and were trained on before let validation flatter",
    "validation.timesteps": "validation is measured otherwise, so its curve breaks",
}
"""What a change means beyond itself."""


@dataclass(frozen=True)
class Change:
    """One setting's change; `note` says what it brings with it, if anything."""

    name: str
    before: Any
    after: Any
    note: str = ""

    @property
    def sentence(self) -> str:
        """The change in words."""
        return f"{self.name}: {self.before} -> {self.after}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Version:
    """A change of a run's settings, as its history keeps it."""

    at: float
    """Seconds since the epoch."""
    step: int
    """Of the newest checkpoint then."""
    changes: list[Change] = field(default_factory=list)
    images: str = ""
    """What changed in the image folders, if that was accepted."""
    events_bytes: int | None = None
    """Size of the event log then: what a process did with these settings comes after. None in older histories."""


def planned(path: Path, overrides: Sequence[str]) -> tuple[TrainConfig, list[Change]]:
    """A run's settings with others in place, as `section.name=value`, and what that changes. Nothing is written.

    What was changed in its config.yaml by hand is among the changes.
    Raises ConfigError that lists every setting that can't change or is wrong, and for a config.yaml that was cut off.
    """
    folder, after = open_run(path)
    before = _kept(folder) or after
    if overrides:
        values = after.model_dump(mode="json")
        files.override(values, overrides, "the command line")
        after = with_absolute_paths(files.with_files_read(files.validate(values, "the changed settings")))
    old, new = (schema.flatten(config) for config in (before, after))
    changes = [
        Change(name, _plain(old[name]), _plain(new[name]), _NOTES.get(name, ""))
        for name in new
        if old.get(name) != new[name]
    ]
    problems = [
        f"{one.name}: {reason}; for another one begin a new run, if you like with adapter.start_from={folder.path.name}"
        for one in changes
        if (reason := _why_fixed(one.name)) is not None
    ]
    if problems:
        raise ConfigError(str(path), problems)
    return after, changes


def apply(folder: RunFolder, after: TrainConfig, changes: Sequence[Change]) -> None:
    """Write what `planned` gave, once it is sure that the run goes on."""
    if changes:
        # History first: a kill in between leaves a version too many, never a change that nobody wrote down.
        record(folder, changes=changes)
        write_config(folder, after)


def _kept(folder: RunFolder) -> TrainConfig | None:
    """The configuration as it was written last; None for runs of versions that kept no copy."""
    try:
        kept, on_disk = files.read_yaml(folder.kept_config), files.read_yaml(folder.config)
        before = files.load(folder.kept_config)
    except ConfigError:
        return None
    here = set(schema.dotted_names(on_disk))
    gone = [name for name in schema.dotted_names(kept) if name not in here]
    # The file holds every setting: defaults in place of lost ones would train something else without a word.
    if gone:
        raise ConfigError(
            str(folder.config),
            [
                f"{len(gone)} settings are gone from it, {gone[0]} the first: it was cut off or edited. Put them back, "
                f"or take the copy that sdlora keeps beside it: {folder.kept_config.name}"
            ],
        )
    return before


def record(folder: RunFolder, changes: Sequence[Change] = (), images: str = "") -> None:
    """Add a version to the run's history, with the configuration as it is now."""
    newest = checkpoints.newest(folder)
    events_bytes = folder.events.stat().st_size if folder.events.is_file() else 0
    version = Version(time.time(), newest.step if newest else 0, list(changes), images, events_bytes)
    number = len(history(folder)) + 1
    atomic.write_text(folder.history / f"{number:04d}.yaml", folder.config.read_text(encoding="utf-8"), parents=True)
    # A version counts from here on: `history` goes by these files.
    atomic.write_text(folder.history / f"{number:04d}.json", json.dumps(asdict(version), indent=2, default=str))


def history(folder: RunFolder) -> list[Version]:
    """All changes of a run's settings, oldest first; damaged entries are left out."""
    versions = []
    for path in sorted(folder.history.glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            values["changes"] = [Change(**each) for each in values["changes"]]
            versions.append(Version(**values))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return versions


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    return json.loads(json.dumps(value, default=str))


def _why_fixed(name: str) -> str | None:
    if name in _FREE_IN_ADAPTER:
        return None
    reasons = (why for start, why in _FIXED.items() if name == start or (start[-1] == "." and name.startswith(start)))
    return next(reasons, None)
