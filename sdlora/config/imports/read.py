"""Another trainer's settings file, whichever it is, to a configuration of ours."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdlora.config import files
from sdlora.config.imports.ai_toolkit import from_job
from sdlora.config.imports.kohya import from_dataset_config, from_gui, from_metadata
from sdlora.config.imports.onetrainer import from_concepts
from sdlora.config.imports.translation import Translation, settle
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError

_REPEATS_FOLDER = re.compile(r"\d{1,3}_.+")


@dataclass(frozen=True)
class Imported:
    """A foreign settings file in our terms."""

    tool: str
    """Which tool and file it was read as."""
    config: TrainConfig
    lost: tuple[str, ...]
    """A sentence for each setting that has no counterpart."""
    captions: Mapping[str, str]
    """Captions of a metadata file, by image; empty for other files."""

    def as_yaml(self) -> str:
        """The configuration as a file of ours: what differs from the defaults, below what was not taken over."""
        lines = [f"# Imported from {self.tool}"]
        if self.lost:
            lines += ["# Not taken over:", *(f"#   {' '.join(sentence.split())}" for sentence in self.lost)]
        return "\n".join([*lines, files.dump(self.config, only_changes=True)])


def import_settings(path: Path) -> Imported:
    """Read kohya_ss JSON, sd-scripts' dataset.toml, metadata JSON or folder, OneTrainer concepts or ai-toolkit YAML.

    Raises ConfigError for a file that is none of these, or whose values ours refuses.
    """
    path = path.expanduser()
    try:
        tool, translation = _translate(path)
        settle(translation)
    except (ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(str(path), [f"can't be imported: {' '.join(str(error).split())}"]) from error
    config = files.validate(translation.nested(), f"{path}, as imported,")
    return Imported(tool, config, tuple(translation.lost), translation.captions)


def _translate(path: Path) -> tuple[str, Translation]:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ConfigError(str(path), ["no such file or folder"])
    ending = path.suffix.lower()
    if ending == ".toml":
        return "sd-scripts dataset config", from_dataset_config(_read_toml(path))
    if ending in (".yaml", ".yml"):
        return "ai-toolkit", from_job(_mapping(yaml.safe_load(path.read_text(encoding="utf-8-sig"))))
    if ending == ".json":
        return _json(json.loads(path.read_text(encoding="utf-8-sig")), path)
    raise ValueError(f"{ending or 'a file without ending'} is not read; .json, .toml, .yaml and folders are")


def _json(content: Any, path: Path) -> tuple[str, Translation]:
    if isinstance(content, list):
        return "OneTrainer concepts", from_concepts(content)
    settings = _mapping(content)
    if isinstance(settings.get("concepts"), list):
        translation = from_concepts(settings["concepts"])
        translation.lose_rest(settings, {"concepts", "__version"})
        return "OneTrainer concepts", translation
    if {"pretrained_model_name_or_path", "train_data_dir", "LoRA_type"} & settings.keys():
        return "kohya_ss", from_gui(settings)
    if settings and all(isinstance(entry, dict) for entry in settings.values()):
        translation = from_metadata(settings)
        translation.put("images.folder", str(path.parent))
        return "sd-scripts metadata", translation
    if "datasets" in settings:
        return "sd-scripts dataset config", from_dataset_config(settings)
    raise ValueError("neither kohya_ss settings, OneTrainer concepts nor sd-scripts metadata")


def _folder(path: Path) -> tuple[str, Translation]:
    translation = Translation()
    if not any(_REPEATS_FOLDER.fullmatch(inner.name) for inner in path.iterdir() if inner.is_dir()):
        raise ValueError("no folder called N_name (10_cat) in it; plain image folders need no import")
    translation.put("images.folder", str(path))
    return "sd-scripts folders", translation


def _mapping(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not settings")
    return content


def _read_toml(path: Path) -> Mapping[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))
