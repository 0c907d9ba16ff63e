"""What people try first, taken as it is meant where that is clear, and told how to write it where it isn't."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.core import TyperCommand

from sdlora.config import files, schema
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.generate import GenerateConfig
from sdlora.config.serve import ServeConfig
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.imports.names import settings_called
from sdlora.words import as_typed

_MEANT = {
    "base": ["base_model.model"],
    "base_model": ["base_model.model"],
    "checkpoint": ["base_model.model"],
    "pretrained_model": ["base_model.model"],
    "lora": ["adapter.start_from"],
    "lora_name": ["name"],
    "dim": ["adapter.rank"],
    "seed": ["seed"],
    "steps": ["optimization.steps"],
    "batch": ["optimization.batch_size"],
    "scheduler": ["optimization.schedule"],
    "gpu": ["optimization.device"],
    "precision": ["optimization.precision"],
    "size": ["images.resolution"],
    "width": ["images.resolution"],
    "height": ["images.resolution"],
    "flip": ["images.horizontal_flip"],
    "folder": ["images.folder"],
    "data": ["images.folder"],
    "data_dir": ["images.folder"],
    "dataset": ["images.folder"],
    "image_dir": ["images.folder"],
    "image_folder": ["images.folder"],
    "images": ["images.folder"],
    "token": ["captions.trigger"],
    "validation": ["validation.fraction", "validation.folder"],
    "preview": ["previews.prompts"],
    "previews": ["previews.prompts"],
    "cfg": ["previews.guidance"],
    "out": ["outputs.folder"],
    "out_dir": ["outputs.folder"],
    "output": ["outputs.folder"],
}
"""What an option of `train` is meant to be, where no setting has that name alone, or several do."""


class WholeCommand(TyperCommand):
    """A command that names everything it lacks at once."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        """As Typer does, which names the first argument or option that is missing, and no other."""
        given = list(arguments)
        try:
            return super().parse_args(context, arguments)
        except Exception as error:
            # Typer brings a click of its own: its exceptions have no public name.
            if type(error).__name__ != "MissingParameter":
                raise
            values, _, _ = self.make_parser(context).parse_args(given)
            lacks = [one for one in self.params if one.required and not values.get(str(one.name))]
            # An option's spellings; an argument has none that is typed, so its placeholder.
            names = [" / ".join(one.opts) if one.opts[0][0] == "-" else one.metavar or one.opts[0] for one in lacks]
            told: Any = error
            told.param_type, told.param_hint = "parameter" + "s" * (len(names) > 1), ", ".join(names)
            raise


class SettingsCommand(TyperCommand):
    """A command whose settings are given with --set, and which says so when one is tried as an option."""

    kind: type[BaseModel] = TrainConfig
    """Whose settings they are."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        """As Typer does; an unknown option that is a setting's name is told how to be written."""
        given = list(arguments)
        if apart := _set_apart(given):
            context.fail(f"--set {apart[0]} {apart[1]}: write it as --set {apart[0]}={apart[1]}")
        try:
            return super().parse_args(context, arguments)
        except Exception as error:
            if type(error).__name__ != "NoSuchOption":  # as above
                raise
            told = _how_to_write(str(getattr(error, "option_name", "")), given, self.kind)
        context.fail(told)
        return []


class GenerateCommand(SettingsCommand):
    """The same for the settings of `generate`."""

    kind = GenerateConfig


class EvaluateCommand(SettingsCommand):
    """The same for the settings of `evaluate`."""

    kind = EvaluateConfig


class ServeCommand(SettingsCommand):
    """The same for the settings of `serve`."""

    kind = ServeConfig


def _set_apart(given: list[str]) -> tuple[str, str] | None:
    """The name and value of the first --set that has them in two words."""
    for option, name, value in zip(given, given[1:], given[2:], strict=False):
        if option in ("--set", "-s") and "=" not in name and not value.startswith("-"):
            return name, value
    return None


def _how_to_write(option: str, given: list[str], kind: type[BaseModel]) -> str:
    """What to write instead of an option that isn't there; `given` is the whole command line."""
    _, _, value = next((text for text in given if text.startswith(f"{option}=")), "").partition("=")
    if not value and option in given:
        after = given[given.index(option) + 1 :][:1]
        value = after[0] if after and not after[0].startswith("-") else ""
    name = option.lstrip("-").replace("-", "_")
    found = (_MEANT.get(name) if kind is TrainConfig else None) or named(name, kind)
    if not found:
        section = "" if kind is TrainConfig else f" {files.command_of(kind)}"
        return f"there is no option {option}; settings (`sdlora explain{section}`) are written as --set NAME=VALUE"
    written = " or ".join("--set " + as_typed(f"{setting}={value or 'VALUE'}") for setting in found[:3])
    return f"there is no option {option}: a setting is written as {written}"


def named(name: str, kind: type[BaseModel] = TrainConfig) -> list[str]:
    """The dotted names of settings that somebody may mean by a name: ours, other tools', or one much like ours."""
    known = [setting.name for setting in schema.settings(kind)]
    found = [one for one in known if one == name or one.rpartition(".")[2] == name]
    found = found or [one for one in settings_called(name) if kind is TrainConfig or one in known]
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
            raise ConfigError(
                source, [f"this is a run's folder: go on with it by `{as_typed('sdlora', 'resume', source)}`"]
            )
        return preset, [f"images.folder={source}", *overrides]
    if path.is_file() and path.suffix.lower() in (".toml", ".json"):
        files.read_preset(path)
    # Here, as it brings Pillow, which `--help` does without.
    from sdlora.data.scan_problems import dataset_meant

    if preset is not None:
        meant = dataset_meant(path)
        raise ConfigError(
            "the command line", [f"'{source}' is no folder, and --preset names the preset already{meant}"]
        )
    try:
        files.find(source)
    except ConfigError as error:
        if not (meant := dataset_meant(path)):
            raise
        raise ConfigError(source, [f"no such folder{meant} As a preset: {error.problems[0]}"]) from None
    return source, overrides
