"""Presets to begin from, those that come with sdlora and those that a person saved; and what a run adds to one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel

from sdlora import atomic
from sdlora.config import files
from sdlora.config.optimization import OPTIMIZERS
from sdlora.config.outputs import OutputsConfig
from sdlora.config.schema import flatten
from sdlora.config.shipped import presets_folder
from sdlora.config.train import TrainConfig
from sdlora.disk import is_file
from sdlora.errors import ConfigError
from sdlora.file_memory import while_unchanged
from sdlora.words import as_typed

Subject = Literal["style", "person", "character", "concept"]
"""What pictures are to teach."""
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
PLAIN = "none"
"""Stands for no preset: every setting at its default."""
_PLAIN_LABEL = "no preset: every setting at its default"


SUGGESTIONS: Mapping[str, Sequence[str]] = {
    "adapter.layers": ("attention", "attention+ff", "all", "all+conv"),
    "optimization.optimizer": OPTIMIZERS,
    "optimization.device": ("auto", "cpu", "cuda", "mps"),
}
"""Values to offer for settings that take others too."""


@dataclass(frozen=True)
class Preset:
    """A file of settings to begin from."""

    name: str
    """What the command line takes after --preset: a shipped preset's file name, or a path."""
    path: Path
    is_shipped: bool

    @property
    def label(self) -> str:
        """Name and purpose, in one line."""
        purpose = files.purpose(self.path)
        own = "" if self.is_shipped else " (yours)"
        return f"{self.path.stem}{own}: {purpose}" if purpose else f"{self.path.stem}{own}"


def list_presets(folder: Path) -> list[Preset]:
    """A person's own presets in a folder, then the shipped ones, the demo first."""
    own = [Preset(str(path), path, False) for path in sorted(folder.glob("*.yaml")) if is_file(path)]
    shipped = [Preset(path.name, path, True) for path in files.shipped_presets()]
    return own + sorted(shipped, key=lambda preset: preset.name != "demo.yaml")


def choices(folder: Path) -> list[tuple[str, str]]:
    """Label and name of each preset, and of none."""
    return [*((preset.label, preset.name) for preset in list_presets(folder)), (_PLAIN_LABEL, PLAIN)]


def title(name: str) -> str:
    """What a person calls a preset: its file's name without folder and suffix."""
    return _PLAIN_LABEL if name == PLAIN else Path(name).stem


def facts(name: str) -> list[tuple[str, str]]:
    """What a preset's header says of it, label and text: base model, memory, time."""
    if name == PLAIN:
        return []
    parts = (line.lstrip("# ").partition(": ") for line in _header(files.find(name)))
    return [(label, text) for label, _, text in parts if text and label != "Command"]


def _header(path: Path) -> Iterator[str]:
    yield from takewhile(lambda line: line.startswith("#"), files.lines_of(path))


def load(name: str | None) -> TrainConfig:
    """The configuration of a preset. Raises ConfigError when there is none of that name, or it is damaged."""
    if name is None or name == PLAIN:
        return TrainConfig()
    path = files.find(name)
    # One's own may build on another file, which may change while this one stays as it is.
    return _load_shipped(path) if path.parent == presets_folder() else files.load(path)


@while_unchanged(64)
def _load_shipped(path: Path) -> TrainConfig:
    return files.load(path)


def save(config: TrainConfig, name: str, folder: Path, purpose: str = "") -> Preset:
    """Keep settings as a preset of one's own. Raises ConfigError for a name that is taken or can't be a file's."""
    stem = name.strip()
    if not re.fullmatch(r"[\w.+() -]+", stem) or stem != stem.strip("."):
        raise ConfigError("the preset's name", [f"'{stem}': use letters, digits, spaces, _ - + . ( )"])
    path = folder / f"{stem}.yaml"
    if path.exists():
        raise ConfigError("the preset's name", [f"'{stem}' is taken: choose another one, or delete {path}"])
    header = f"# Purpose: {' '.join(purpose.split())}\n" if purpose.strip() else ""
    atomic.write_text(path, header + files.dump(config, only_changes=True), parents=True)
    return Preset(str(path), path, False)


def command_line(config: TrainConfig, preset: str) -> str:
    """The command that trains this configuration: the preset, and a --set for each setting that differs from it."""
    base = flatten(load(preset))
    arguments = ["sdlora", "train", *([] if preset == PLAIN else ["--preset", preset])]
    for name, value in flatten(config).items():
        if value != base[name]:
            arguments += ["--set", f"{name}={_on_one_line(value)}"]
    return as_typed(*arguments)


def portable(config: TrainConfig) -> TrainConfig:
    """The configuration without what only holds on this machine: the folder of its runs."""
    return config.model_copy(update={"outputs": config.outputs.model_copy(update={"folder": OutputsConfig().folder})})


def base_models(used: Sequence[str] = ()) -> list[str]:
    """Base models to offer: those used before, then those of the shipped presets."""
    of_presets = [_load_shipped(path).base_model.model for path in files.shipped_presets()]
    return list(dict.fromkeys([*used, *of_presets]))


def _on_one_line(value: Any) -> str:
    """A value as YAML on one line, as `--set` reads it back."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, allow_unicode=True, width=2**20)
    # YAML ends a lone scalar with "...", the mark of a document's end.
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
