"""The run that the Train tab's form describes: its configuration, its problems, its YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import TrainConfig
from sdlora.config import files, presets
from sdlora.training.preflight.paths import missing_paths
from webui.fields import Field, check

SET_BY_THE_PAGE = ("outputs.folder",)
"""Settings without an input: runs lie in the workspace."""
OF_THE_PERSON = ("name", "images.folder", "captions.trigger")
"""Settings that another preset doesn't change once a person chose them."""


@dataclass(frozen=True)
class Draft:
    """What the form holds: a configuration, or the reasons why there is none."""

    config: TrainConfig | None
    problems: tuple[str, ...]

    @property
    def can_start(self) -> bool:
        """Whether a run may be made of it."""
        return self.config is not None and not self.problems


def read(shown: Mapping[str, Any], among: Sequence[Field], runs_folder: Path) -> Draft:
    """The draft behind the inputs, checked as far as that takes no time: settings, folders and files."""
    config, problems = check(TrainConfig, among, shown, {"outputs.folder": str(runs_folder)})
    if config is None:
        return Draft(None, tuple(problems))
    return Draft(config, tuple(missing_paths(config)))


def load_preset(preset: Mapping[str, Any], before: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the form shows after another preset was chosen.

    preset: what it shows of itself; before: what the last one showed; shown: what the form shows now. Name, dataset
    and trigger stay as a person chose them.
    """
    kept = {name: shown[name] for name in OF_THE_PERSON if name in shown and shown[name] != before.get(name)}
    return {**preset, **kept}


def to_yaml(config: TrainConfig) -> str:
    """The configuration as a file: what differs from the defaults."""
    return files.dump(presets.portable(config), only_changes=True)


def from_yaml(text: str) -> TrainConfig:
    """The configuration in a text. Raises ConfigError that lists every problem."""
    return files.validate(files.parse_yaml(text, "the YAML text"), "the YAML text")
