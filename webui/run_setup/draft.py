"""The run that the form describes: its configuration, its problems, its YAML, the command that trains the same."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdlora.config import files
from sdlora.config.outputs import OutputsConfig
from sdlora.config.schema import flatten
from sdlora.config.shipped import resolve_folder
from sdlora.config.train import TrainConfig
from sdlora.data.images import list_folder
from sdlora.errors import ConfigError, SdloraError
from sdlora.imports.read import import_settings
from webui.fields import Field, check
from webui.run_setup import presets

SET_BY_THE_PAGE = ("outputs.folder",)
"""Settings without an input: runs lie in the workspace."""
OF_THE_PERSON = ("name", "images.folder", "captions.trigger")
"""Settings that another preset doesn't change once a person chose them."""
_FILE_SUFFIXES = (".safetensors", ".ckpt")


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
    return Draft(config, tuple(_missing(config)))


def load_preset(preset: Mapping[str, Any], before: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the form shows after another preset was chosen.

    preset: what it shows of itself; before: what the last one showed; shown: what the form shows now. Name, dataset
    and trigger stay as a person chose them.
    """
    kept = {name: shown[name] for name in OF_THE_PERSON if name in shown and shown[name] != before.get(name)}
    return {**preset, **kept}


def command(config: TrainConfig, preset: str) -> str:
    """The command that trains this configuration: the preset, and a --set for each setting that differs from it."""
    base = flatten(presets.load(preset))
    arguments = ["sdlora", "train", *([] if preset == presets.PLAIN else ["--preset", preset])]
    for name, value in flatten(config).items():
        if value != base[name]:
            arguments += ["--set", f"{name}={_as_yaml(value)}"]
    return subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)


def anywhere(config: TrainConfig) -> TrainConfig:
    """The configuration without what only holds in this workspace: the folder of its runs."""
    return config.model_copy(update={"outputs": config.outputs.model_copy(update={"folder": OutputsConfig().folder})})


def to_yaml(config: TrainConfig) -> str:
    """The configuration as a file: what differs from the defaults."""
    return files.dump(anywhere(config), only_changes=True)


def from_yaml(text: str) -> TrainConfig:
    """The configuration in a text. Raises ConfigError that lists every problem."""
    return files.validate(files.parse_yaml(text, "the YAML text"), "the YAML text")


def import_file(path: Path) -> str:
    """The YAML text of a settings file, ours or another trainer's (with what was not taken over as comments).

    Raises ConfigError when it is neither.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        try:
            files.load(path)
            return path.read_text(encoding="utf-8")
        except ConfigError as error:
            ours = error
            try:
                return import_settings(path).as_yaml()
            except ConfigError:
                raise ours from None
    return import_settings(path).as_yaml()


def data_sets(folder: Path) -> list[tuple[str, str]]:
    """Name and path of each dataset of the workspace, then the sample sets that come with sdlora."""
    own = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    shipped = sorted(path.name for path in resolve_folder(Path("builtin:")).iterdir() if path.is_dir())
    return [(path.name, str(path)) for path in own] + [(f"builtin:{name}", f"builtin:{name}") for name in shipped]


def base_models(used: Sequence[str] = ()) -> list[str]:
    """Base models to offer: those of earlier runs, then those of the presets."""
    of_presets = [files.load(path).base_model.model for path in files.shipped_presets()]
    return list(dict.fromkeys([*used, *of_presets]))


def _missing(config: TrainConfig) -> list[str]:
    """Folders and files that are named and not there."""
    problems = []
    if not config.images.all_folders:
        problems.append("images.folder: choose a dataset")
    named = {"images.class_folder": config.images.class_folder, "validation.folder": config.validation.folder}
    folders = [*(("images.folder", path) for path in config.images.all_folders), *named.items()]
    problems += [text for name, path in folders if path is not None and (text := _folder_problem(name, path))]
    model = Path(config.base_model.model).expanduser()
    if (model.suffix in _FILE_SUFFIXES or model.is_absolute()) and not model.exists():
        problems.append(f"base_model.model: there is no {model}")
    return problems


def _folder_problem(name: str, folder: Path) -> str | None:
    folder = folder.expanduser()
    if not folder.is_dir():
        return f"{name}: there is no folder {folder}"
    try:
        list_folder(folder.absolute())
    except SdloraError as error:
        return f"{name}: {error}"
    return None


def _as_yaml(value: Any) -> str:
    """A value on one line, as `--set` reads it back."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, allow_unicode=True, width=2**20)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
