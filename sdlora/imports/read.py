"""Another trainer's settings file, whichever it is, to a configuration of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from sdlora.config import files, schema
from sdlora.config.train import TrainConfig
from sdlora.errors import AdapterError, ConfigError
from sdlora.imports.ai_toolkit import from_job
from sdlora.imports.folders import SourceFolder, put_folders
from sdlora.imports.onetrainer import from_concepts
from sdlora.imports.onetrainer_config import from_config
from sdlora.imports.optimizers import settle
from sdlora.imports.sd_scripts import from_file_metadata, from_saved_window, from_training_config, is_training_config
from sdlora.imports.sd_scripts_data import from_dataset_config, from_metadata
from sdlora.imports.simpletuner import from_config as from_simpletuner
from sdlora.imports.simpletuner_data import from_backends
from sdlora.imports.translation import Translation, reconcile
from sdlora.models.headers import read_header
from sdlora.text_files import parse_toml, parse_written_json, parse_yaml, read_text

_REPEATS_FOLDER = re.compile(r"\d{1,3}_.+")


@dataclass(frozen=True)
class Imported:
    """A foreign settings file in our terms, and what of it could not be said in them."""

    tool: str
    """Which tool and file it was read as."""
    config: TrainConfig
    lost: tuple[str, ...]
    """A sentence for each setting that has no counterpart."""
    changed: tuple[str, ...]
    """A sentence for each that was taken over with another value, and why."""
    assumed: tuple[str, ...]
    """What the file leaves out, as it is by default in its tool: `lora_rank=16`."""
    without_effect: tuple[str, ...]
    """The names of settings about speed, the machine or a window, which change nothing here."""
    captions: Mapping[str, str]
    """Captions of a metadata file, by image; empty for other files."""

    def as_yaml(self) -> str:
        """The configuration as a file of ours: what differs from the defaults, below what was not taken over."""
        lines = [f"# Imported from {self.tool}"]
        if self.changed:
            lines += ["# Taken over with changes:", *(f"#   {' '.join(one.split())}" for one in self.changed)]
        if self.lost:
            lines += ["# Not taken over:", *(f"#   {' '.join(sentence.split())}" for sentence in self.lost)]
        if self.assumed:
            lines.append(f"# Not in the file, so as by default there: {' '.join(', '.join(self.assumed).split())}")
        if self.without_effect:
            lines.append(f"# Without effect here: {' '.join(', '.join(self.without_effect).split())}")
        return "\n".join([*lines, files.dump(self.config, only_changes=True)])


def import_settings(path: Path) -> Imported:
    """Read settings of kohya_ss, sd-scripts (also in a LoRA file), LoRA_Easy, OneTrainer, ai-toolkit or SimpleTuner.

    Raises ConfigError for a file that is none of these, or whose values ours refuses.
    """
    path = path.expanduser()
    try:
        tool, translation = _translate(path)
        settle(translation)
        reconcile(translation)
    except ValueError as error:
        raise ConfigError(str(path), [f"can't be imported: {' '.join(str(error).split())}"]) from error
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        shape = "a text, a number or nothing stands where a section or a list belongs, or the other way round"
        raise ConfigError(str(path), [f"can't be imported: {shape} ({' '.join(str(error).split())})"]) from error
    config = files.validate(schema.nest(translation.values), f"{path}, as imported,")
    return Imported(
        tool,
        config,
        lost=tuple(translation.lost),
        changed=tuple(translation.changed),
        assumed=tuple(translation.assumed),
        without_effect=tuple(dict.fromkeys(translation.without_effect)),
        captions=translation.captions,
    )


def _translate(path: Path) -> tuple[str, Translation]:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ConfigError(str(path), ["no such file or folder"])
    ending = path.suffix.lower()
    if ending == ".toml":
        settings = parse_toml(_filled(path))
        if is_training_config(settings):
            return "sd-scripts training config", from_training_config(settings, lambda name: _text_beside(path, name))
        return "sd-scripts dataset config", from_dataset_config(settings)
    if ending == ".safetensors":
        return "the metadata of a LoRA file", from_file_metadata(read_header(path, error=AdapterError).metadata)
    if ending in (".yaml", ".yml"):
        content = _mapping(parse_yaml(_filled(path)))
        return ("ai-toolkit", from_job(content)) if {"job", "config"} & content.keys() else _json(content, path)
    if ending == ".json":
        return _json(parse_written_json(_filled(path)), path)
    raise ValueError(
        f"{ending or 'a file without ending'} is not read; .json, .toml, .yaml, .safetensors and folders are"
    )


def _filled(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _json(content: Any, path: Path) -> tuple[str, Translation]:
    if isinstance(content, list):
        if any(
            isinstance(one, dict) and {"instance_data_dir", "dataset_type", "caption_strategy"} & one.keys()
            for one in content
        ):
            return "SimpleTuner data backends", from_backends(content)
        return "OneTrainer concepts", from_concepts(content)
    settings = _mapping(content)
    # SimpleTuner writes its names as on its command line, with dashes in front.
    plain = {name.lstrip("-") for name in settings}
    if {"data_backend_config", "model_family"} & plain:
        return "SimpleTuner", from_simpletuner(settings, lambda name: _json_beside(path, name))
    if {"training_method", "model_type", "base_model_name", "output_model_destination"} & settings.keys():
        return "OneTrainer", _onetrainer(settings, path)
    if isinstance(settings.get("concepts"), list):
        translation = from_concepts(settings["concepts"])
        translation.lose_rest(settings, {"concepts", "__version"})
        return "OneTrainer concepts", translation
    if {"pretrained_model_name_or_path", "train_data_dir", "LoRA_type", "network_dim"} & settings.keys():
        return "kohya_ss", from_saved_window(settings, lambda name: _text_beside(path, name))
    if isinstance(settings.get("config"), dict) and "process" in settings["config"]:
        return "ai-toolkit", from_job(settings)
    if all(isinstance(entry, dict) for entry in settings.values()) and any(
        {"caption", "tags", "train_resolution"} & entry.keys() for entry in settings.values()
    ):
        translation = from_metadata(settings)
        put_folders(translation, [SourceFolder(str(path.parent))])
        return "sd-scripts metadata", translation
    if "datasets" in settings:
        return "sd-scripts dataset config", from_dataset_config(settings)
    raise ValueError(
        "neither settings of kohya_ss, OneTrainer or SimpleTuner nor OneTrainer concepts or sd-scripts metadata"
    )


def _onetrainer(settings: Mapping[str, Any], path: Path) -> Translation:
    """The configuration with its concepts and samples, which may stand in files of their own."""
    lists: dict[str, list[Any]] = {}
    missing = []
    for name, pointer in (("concepts", "concept_file_name"), ("samples", "sample_definition_file_name")):
        own, file = settings.get(name), settings.get(pointer)
        found = _beside(path, str(file)) if own is None and file else None
        lists[name] = parse_written_json(read_text(found)) if found else own or []
        if own is None and file and not found:
            missing.append((pointer, file))
    translation = from_config(settings, lists["concepts"], lists["samples"])
    for pointer, file in missing:
        ours = "images.folder" if pointer == "concept_file_name" else "previews.prompts"
        translation.lose(pointer, file, f"no such file near {path.name}; set {ours}")
    return translation


def _beside(path: Path, name: str) -> Path | None:
    """A file that settings name, relative to their own folder or one above it."""
    plain = PureWindowsPath(name).as_posix()
    tried = [Path(plain), *(folder / plain for folder in path.resolve().parents)]
    try:
        return next((candidate for candidate in tried if candidate.is_file()), None)
    except OSError:  # no name that a file can have
        return None


def _json_beside(path: Path, name: str) -> Any:
    found = _beside(path, name)
    return parse_written_json(read_text(found)) if found else None


def _text_beside(path: Path, name: str) -> str | None:
    found = _beside(path, name)
    return read_text(found) if found else None


def is_settings_folder(path: Path) -> bool:
    """Whether a folder says by its subfolders' names or its metadata how its images are trained."""
    path = path.expanduser()
    return path.is_dir() and (_has_repeats(path) or _has_metadata(path))


def _has_repeats(path: Path) -> bool:
    return any(_REPEATS_FOLDER.fullmatch(inner.name) for inner in path.iterdir() if inner.is_dir())


def _has_metadata(path: Path) -> bool:
    return any(next(path.rglob(f"metadata.{ending}"), None) for ending in ("jsonl", "csv", "parquet"))


def _folder(path: Path) -> tuple[str, Translation]:
    translation = Translation()
    translation.put("images.folder", str(path))
    if _has_repeats(path):
        return "sd-scripts folders", translation
    if _has_metadata(path):
        return "Hugging Face image folder", translation
    raise ValueError(
        "no folder called N_name (10_cat), no metadata.jsonl, .csv or .parquet and no .tar or .parquet shards in it; "
        "plain image folders need no import"
    )


def _mapping(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not settings")
    return content


def settings_as_yaml(path: Path) -> str:
    """The YAML text of a settings file, ours or another trainer's (with what was not taken over as comments).

    Raises ConfigError when it is neither.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        return import_settings(path).as_yaml()
    # A YAML file is ours or ai-toolkit's; of one that is neither, what is wrong with it as ours is told.
    try:
        files.load(path)
        return read_text(path)
    except ConfigError as error:
        ours = error
    try:
        return import_settings(path).as_yaml()
    except ConfigError:
        raise ours from None
