"""What people try first, taken as it is meant where that is clear, and told how to write it where it isn't."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from sdlora.config import files, schema
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.imports.names import settings_called

_FOREIGN_SETTINGS = (".toml", ".json")


class SettingsCommand(TyperCommand):
    """A command whose settings are given with --set, and which says so when one is tried as an option."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        """As Typer does; an unknown option that is a setting's name is told how to be written."""
        given = list(arguments)
        try:
            return super().parse_args(context, arguments)
        except Exception as error:
            # Typer brings a click of its own: its exceptions have no public name.
            if type(error).__name__ == "NoSuchOption":
                told = _how_to_write(str(getattr(error, "option_name", "")), given)
            elif apart := _set_apart(given):
                told = f"--set {apart[0]} {apart[1]}: write it as --set {apart[0]}={apart[1]}"
            else:
                raise
        context.fail(told)
        return []


def _set_apart(given: list[str]) -> tuple[str, str] | None:
    """The name and value of the first --set that has them in two words."""
    for option, name, value in zip(given, given[1:], given[2:], strict=False):
        if option in ("--set", "-s") and "=" not in name and not value.startswith("-"):
            return name, value
    return None


def _how_to_write(option: str, given: list[str]) -> str:
    """What to write instead of an option that isn't there; `given` is the whole command line."""
    _, _, value = next((text for text in given if text.startswith(f"{option}=")), "").partition("=")
    if not value and option in given:
        after = given[given.index(option) + 1 :][:1]
        value = after[0] if after and not after[0].startswith("-") else ""
    found = named(option.lstrip("-").replace("-", "_"))
    if not found:
        return f"there is no option {option}; settings (`sdlora explain`) are written as --set NAME=VALUE"
    written = " or ".join(f"--set {setting}={value or 'VALUE'}" for setting in found[:3])
    return f"there is no option {option}: a setting is written as {written}"


def named(name: str) -> list[str]:
    """The dotted names of settings that somebody may mean by a name: ours, other tools', or one much like ours."""
    known = [setting.name for setting in schema.settings(TrainConfig)]
    found = [one for one in known if one == name or one.rpartition(".")[2] == name]
    found = found or settings_called(name)
    if not found:
        near = difflib.get_close_matches(name, [one.rpartition(".")[2] for one in known] + known, n=2, cutoff=0.75)
        found = [one for one in known if one in near or one.rpartition(".")[2] in near]
    return found


def what_to_train(source: str | None, preset: str | None, overrides: list[str]) -> tuple[str | None, list[str]]:
    """The preset and overrides meant by the argument of `train`: a preset, a YAML file or a folder of images.

    Raises ConfigError for what is none of them, and for a preset given twice.
    """
    if source is None:
        return preset, overrides
    if unfinished := [text for text in overrides if "=" not in text]:
        raise ConfigError("the command line", [f"--set {unfinished[0]}: write it as --set {unfinished[0]}={source}"])
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "config.yaml").is_file() and (path / "events.jsonl").is_file():
            raise ConfigError(source, [f"this is a run's folder: go on with it by `sdlora resume {source}`"])
        return preset, [f"images.folder={source}", *overrides]
    if path.suffix.lower() in _FOREIGN_SETTINGS and path.is_file():
        raise ConfigError(source, [f"settings of another trainer are taken over by `sdlora dataset import {source}`"])
    if preset is not None:
        raise ConfigError("the command line", [f"'{source}' is no folder, and --preset names the preset already"])
    files.find(source)
    return source, overrides
