"""The settings of an image file as a request again: its adapters and base model found on this machine.

`repeat_image` is for who wants the same picture: what is missing is an error. `restore_image` is for a form: what is
missing is left out and told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.config import files
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.config.schema import dotted_names
from sdlora.errors import ConfigError
from sdlora.generation.restore.image_files import read_image_settings
from sdlora.generation.restore.infotext import Infotext
from sdlora.library.names import find_adapter, find_adapter_by_hash, short_hash
from sdlora.library.prompt_tags import split_prompt
from sdlora.models.found import model_named

_BUILTIN = "builtin:"
_OUR_OWN_CHOICE = ("version", "adapters", "adapter_folders", "compute", "files", "num_images", "batch_size")
"""Settings that say nothing about the picture, or are handled apart: a form keeps its own."""


@dataclass(frozen=True)
class Repeated:
    """Settings as a YAML request holds them, and sentences on what will differ from the picture."""

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restored:
    """What a picture tells of a request."""

    config: GenerateConfig
    """Its settings, with this program's defaults for what it doesn't tell; without adapters and start image."""
    names: tuple[str, ...]
    """The settings that it does tell, by dotted name."""
    adapters: tuple[UsedAdapter, ...]
    start_image: Path | None
    notes: tuple[str, ...]
    """Sentences on what was not taken over, or will differ."""


def repeat_image(path: Path, adapter_folders: Sequence[Path] = (), *, base_is_given: bool = False) -> Repeated:
    """The request that generates an image file again.

    adapter_folders are searched for adapters that aren't where the picture says, by hash and name.
    base_is_given: whoever asks has another base model in mind, so that the picture's need not be known.
    Raises DataError for a file without settings; ConfigError for tags that can't be read, adapters that aren't found
    and a base model that isn't known here, all at once.
    """
    picture = _Picture(path, adapter_folders)
    values = dict(picture.found.values)
    problems: list[str] = []
    if not picture.found.by_sdlora:
        _take_base(picture.found, values, base_is_given, problems)
    adapters = picture.listed_adapters() + picture.adapters_in(values)
    if adapters or not picture.found.by_sdlora:
        values["adapters"] = adapters
    if adapter_folders:
        values["adapter_folders"] = [str(folder) for folder in adapter_folders]
    if problems := [*problems, *picture.missing]:
        raise ConfigError(str(path), problems)
    return Repeated(values, tuple(picture.notes))


def restore_image(
    path: Path,
    adapter_folders: Sequence[Path],
    models: Sequence[tuple[str, str]],
    *,
    with_seed: bool = True,
) -> Restored:
    """The settings of an image file made by sdlora, AUTOMATIC1111's web UI or its relatives.

    models: label and path of the base models at hand. What is missing on this machine (an adapter, the base model,
    the start image) is left out and named in `notes`.
    Raises DataError when the file carries no settings, ConfigError when they make no sense.
    """
    picture = _Picture(path, adapter_folders)
    values = {name: value for name, value in picture.found.values.items() if name not in _OUR_OWN_CHOICE}
    if not with_seed:
        values.pop("seed", None)
    adapters = picture.listed_adapters() + picture.adapters_in(values)
    notes = [*picture.notes, *picture.missing]
    _choose_model(values, picture.found, models, notes)
    start_image = _take_start(values, notes)
    used = tuple(files.validate(adapter, "an adapter", UsedAdapter) for adapter in adapters)
    config = files.validate(values, path.name, GenerateConfig)
    return Restored(config, tuple(dotted_names(values)), used, start_image, tuple(notes))


class _Picture:
    """What stands in an image file, and its adapters on this machine; collects what is missing and what differs."""

    def __init__(self, path: Path, adapter_folders: Sequence[Path]) -> None:
        self.found = read_image_settings(path)
        self.notes = list(self.found.warnings)
        self.missing: list[str] = []
        told = self.found.values.get("adapter_folders")
        folders = [*adapter_folders, *(Path(folder) for folder in _texts(told) if self.found.by_sdlora)]
        self._folders = [folder for folder in folders if folder.expanduser().is_dir()]
        if self.found.unknown:
            unknown = ", ".join(f"{name} {value}".strip() for name, value in self.found.unknown.items())
            self.notes.append(f"not taken over, for want of a counterpart: {unknown}")

    def listed_adapters(self) -> list[dict[str, Any]]:
        """Those that sdlora's own request lists, each with a file that is there."""
        listed = self.found.values.get("adapters")
        located = []
        for values in listed if isinstance(listed, list) else []:
            try:
                adapter = files.validate(values, "an adapter", UsedAdapter)
            except (ConfigError, TypeError, ValueError) as error:
                self.missing.append(f"an adapter can't be read: {error}")
                continue
            if adapter.file.startswith("hf:"):
                located.append(values)
            elif (path := self._where(Path(adapter.file).expanduser())) is not None:
                located.append({**values, "file": str(path)})
        return located

    def adapters_in(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Take the tags out of the prompt and make settings of them: only here the hashes are known."""
        prompt = values.get("prompt", "")
        if not isinstance(prompt, str):
            return []
        try:
            values["prompt"], tags = split_prompt(prompt)
        except ConfigError as error:
            self.missing += error.problems
            return []
        located = []
        for tag in tags:
            try:
                file = self._search(tag.name)
                located.append(tag.as_adapter(file).model_dump(mode="json"))
            except ConfigError as error:
                self.missing += [f"{tag.text}: {problem}" for problem in error.problems]
        return located

    def _where(self, path: Path) -> Path | None:
        """The file itself while it is there, else one of its name or hash."""
        if path.is_file():
            self._compare(path, path.stem)
            return path
        try:
            return self._search(path.stem)
        except ConfigError as error:
            self.missing += [f"{path} is not there any more, and {problem}" for problem in error.problems]
            return None

    def _search(self, name: str) -> Path:
        """By hash, which never mistakes one file for another; else by name."""
        by_hash = find_adapter_by_hash(self._hash(name), self._folders)
        if by_hash is not None:
            return by_hash
        path = find_adapter(name, self._folders)
        self._compare(path, name)
        return path

    def _compare(self, path: Path, name: str) -> None:
        wanted = self._hash(name)
        if wanted and short_hash(path) != wanted:
            self.notes.append(f"{path} is not the file the picture was generated with: its content differs")

    def _hash(self, name: str) -> str:
        """The recorded hash of an adapter; AUTOMATIC1111's texts have no place for a comma in a name."""
        hashes = self.found.adapter_hashes
        return (hashes.get(name) or hashes.get(name.replace(",", "")) or "").lower()


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _take_base(found: Infotext, values: dict[str, Any], base_is_given: bool, problems: list[str]) -> None:
    name = found.model_name
    if name is not None and name.startswith(_BUILTIN):
        values["base_model"] = {"model": name, **values.get("base_model", {})}
    elif not base_is_given:
        called = f"with '{name}'" if name else "with a model that it doesn't name"
        short = f" (hash {found.model_hash})" if found.model_hash else ""
        problems.append(f"it was generated {called}{short}; say which file that is: --base FILE")


def _choose_model(values: dict[str, Any], found: Infotext, models: Sequence[tuple[str, str]], notes: list[str]) -> None:
    told = values.get("base_model")
    base = dict(told) if isinstance(told, Mapping) else {}
    wanted = base.get("model") if found.by_sdlora else found.model_name
    if not isinstance(wanted, str):
        notes.append("it doesn't name its base model; the chosen one stays")
    elif (here := model_named(wanted, models)) is not None:
        base["model"] = here
    elif not found.by_sdlora or (wanted.startswith("/") and not Path(wanted).exists()):
        short = f" (hash {found.model_hash})" if found.model_hash else ""
        notes.append(f"base model {wanted}{short}: it is not in the models folder; the chosen one stays")
        base.pop("model", None)
    values["base_model"] = base


def _take_start(values: dict[str, Any], notes: list[str]) -> Path | None:
    """The start image if it is still there. A mask can't come back into an editor, so it is only told of."""
    start = values.get("start")
    if not isinstance(start, Mapping):
        return None
    image, mask = start.get("image"), start.get("mask")
    values["start"] = {name: value for name, value in start.items() if name not in ("image", "mask")}
    if mask:
        notes.append("it was inpainted: paint the mask again")
    if image and not Path(image).is_file():
        notes.append(f"start image {image}: it is gone")
        return None
    return Path(image) if image else None
