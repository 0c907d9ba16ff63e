"""The settings of an image file as a request that can be generated again: its adapters found on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.errors import ConfigError
from sdlora.generation.request.prompt_adapters import split_prompt
from sdlora.generation.restore.image_files import read_image_settings
from sdlora.generation.restore.infotext import Infotext
from sdlora.library.names import FoundAdapter, find_adapter, find_adapter_by_hash

_BUILTIN = "builtin:"


@dataclass(frozen=True)
class Repeated:
    """Settings as a YAML request holds them, and sentences on what will differ from the picture."""

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def repeat_image(path: Path, adapter_folders: Sequence[Path] = (), *, base_is_given: bool = False) -> Repeated:
    """The request that generates an image file again.

    adapter_folders are searched for adapters that aren't where the picture says, by name, alias and hash.
    base_is_given: whoever asks has another base model in mind, so that the picture's need not be known.
    Raises DataError for a file without settings; ConfigError for tags that can't be read, adapters that aren't found
    and a base model that isn't known here, all at once.
    """
    found = read_image_settings(path)
    problems: list[str] = []
    notes = list(found.warnings)
    values = dict(found.values)
    folders = [*adapter_folders, *(Path(folder) for folder in _texts(values.get("adapter_folders")))]
    folders = [folder for folder in folders if folder.expanduser().is_dir()]
    if found.by_sdlora:
        values["adapters"] = _located(found, folders, problems, notes)
    else:
        _take_base(found, values, base_is_given, problems)
        _take_prompt_tags(found, values, folders, problems)
        if found.unknown:
            notes.append(f"not taken over, for want of a counterpart: {', '.join(found.unknown)}")
    if adapter_folders:
        values["adapter_folders"] = [str(folder) for folder in adapter_folders]
    if problems:
        raise ConfigError(str(path), problems)
    return Repeated(values, tuple(notes))


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _located(found: Infotext, folders: Sequence[Path], problems: list[str], notes: list[str]) -> list[Any]:
    """The request's adapters, each with a file that is there."""
    located: list[Any] = []
    adapters = found.values.get("adapters")
    for adapter in adapters if isinstance(adapters, list) else []:
        file = adapter.get("file") if isinstance(adapter, Mapping) else None
        if not isinstance(file, str) or file.startswith("hf:"):
            located.append(adapter)
            continue
        path = Path(file).expanduser()
        if not path.is_file():
            try:
                path = _search(path.stem, found.adapter_hashes, folders)
            except ConfigError as error:
                problems += [f"{file} is not there any more, and {problem}" for problem in error.problems]
                continue
        wanted = found.adapter_hashes.get(path.stem)
        if wanted and FoundAdapter(path, path.parent).short_hash() != wanted.lower():
            notes.append(f"{path} is not the file the picture was generated with: its content differs")
        located.append({**adapter, "file": str(path)})
    return located


def _search(name: str, hashes: Mapping[str, str], folders: Sequence[Path]) -> Path:
    """By hash, which never mistakes one file for another; else by name."""
    by_hash = find_adapter_by_hash(hashes.get(name.replace(",", ""), ""), folders)
    return by_hash or find_adapter(name, folders)


def _take_base(found: Infotext, values: dict[str, Any], base_is_given: bool, problems: list[str]) -> None:
    name = found.model_name
    if name is not None and name.startswith(_BUILTIN):
        values["base_model"] = {"model": name, **values.get("base_model", {})}
    elif not base_is_given:
        called = f"with '{name}'" if name else "with a model that it doesn't name"
        short = f" (hash {found.model_hash})" if found.model_hash else ""
        problems.append(f"it was generated {called}{short}; say which file that is: --base FILE")


def _take_prompt_tags(found: Infotext, values: dict[str, Any], folders: Sequence[Path], problems: list[str]) -> None:
    """Make settings of the prompt's tags: only here the hashes are known that find a renamed file."""
    try:
        prompt, tags = split_prompt(values.get("prompt", ""))
    except ConfigError as error:
        problems += error.problems
        return
    adapters = []
    for tag in tags:
        try:
            file = _search(tag.name, found.adapter_hashes, folders)
            adapters.append(tag.as_adapter(file).model_dump(mode="json"))
        except ConfigError as error:
            problems += [f"{tag.text}: {problem}" for problem in error.problems]
    values |= {"prompt": prompt, "adapters": adapters}
