"""Settings out of a picture into the page: form values, adapter rows, and what could not be taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.config import files
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.generation.request.prompt_adapters import split_prompt
from sdlora.generation.restore.image_files import read_image_settings
from sdlora.generation.restore.infotext import Infotext
from sdlora.library.names import find_adapter_by_hash
from webui.drawing.models import model_named
from webui.mixing.active_adapters import Rows, from_used
from webui.mixing.adapter_library import Scan

_OUR_OWN_CHOICE = ("version", "adapters", "adapter_folders", "compute", "files", "num_images", "batch_size")
"""Settings that say nothing about the picture, or are handled apart."""


@dataclass(frozen=True)
class Restored:
    """What a picture's settings become on the page."""

    config: GenerateConfig
    """The settings, with this program's defaults for what the picture doesn't tell."""
    names: tuple[str, ...]
    """The settings that it does tell, by dotted name."""
    rows: Rows
    start_image: Path | None
    notes: tuple[str, ...]
    """Sentences on what was not taken over."""


def restore(
    image: Path,
    library: Scan,
    adapter_folders: Sequence[Path],
    models: Sequence[tuple[str, str]],
    *,
    with_seed: bool = True,
) -> Restored:
    """The settings of an image file made by sdlora, AUTOMATIC1111's web UI or its relatives.

    What is missing on this machine (an adapter, the base model, the start image) is left out and named in `notes`.
    Raises DataError when the file carries no settings, ConfigError when they make no sense.
    """
    found = read_image_settings(image)
    notes = list(found.warnings)
    values = {name: value for name, value in found.values.items() if name not in _OUR_OWN_CHOICE}
    if not with_seed:
        values.pop("seed", None)
    adapters = [
        *_told_adapters(found, library, adapter_folders, notes),
        *_take_tags(values, found, library, adapter_folders, notes),
    ]
    _take_model(values, found, models, notes)
    start_image = _take_start(values, notes)
    if found.unknown:
        notes.append("no counterpart here: " + ", ".join(f"{name} {value}" for name, value in found.unknown.items()))
    config = files.validate(values, image.name, GenerateConfig)
    return Restored(config, tuple(_dotted(values)), from_used(adapters), start_image, tuple(notes))


def _told_adapters(found: Infotext, library: Scan, folders: Sequence[Path], notes: list[str]) -> list[UsedAdapter]:
    """Those that sdlora's own request lists, with files that are there."""
    told = found.values.get("adapters")
    adapters = []
    for values in told if isinstance(told, list) else []:
        try:
            adapter = files.validate(values, "an adapter", UsedAdapter)
        except (ConfigError, TypeError) as error:
            notes.append(f"an adapter can't be read: {error}")
            continue
        path = Path(adapter.file).expanduser()
        if not adapter.file.startswith("hf:") and not path.is_file():
            searched = _search(path.stem, found.adapter_hashes, library, folders)
            if searched is None:
                notes.append(f"adapter {path.stem}: it is neither at {path} nor in the library")
                continue
            path = searched
        adapters.append(adapter if adapter.file.startswith("hf:") else adapter.model_copy(update={"file": str(path)}))
    return adapters


def _take_tags(
    values: dict[str, Any], found: Infotext, library: Scan, folders: Sequence[Path], notes: list[str]
) -> list[UsedAdapter]:
    """Take the prompt's tags out of it; those that mean an adapter of the library become rows."""
    try:
        prompt, tags = split_prompt(str(values.get("prompt", "")))
    except ConfigError as error:
        notes += error.problems
        return []
    values["prompt"] = prompt
    adapters = []
    for tag in tags:
        file = _search(tag.name, found.adapter_hashes, library, folders)
        if file is None:
            notes.append(f"adapter {tag.name}: it is not in the library")
        else:
            adapters.append(tag.as_adapter(file))
    return adapters


def _search(name: str, hashes: Mapping[str, str], library: Scan, folders: Sequence[Path]) -> Path | None:
    """By hash, which never mistakes one file for another; else by name."""
    there = [folder for folder in folders if folder.is_dir()]
    by_hash = find_adapter_by_hash(hashes.get(name, ""), there)
    if by_hash is not None:
        return by_hash
    entry = library.by_tag(name)
    return None if entry is None else entry.path


def _take_model(values: dict[str, Any], found: Infotext, models: Sequence[tuple[str, str]], notes: list[str]) -> None:
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
    """The start image if it is still there. A mask can't come back into the editor, so it is only told of."""
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


def _dotted(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name, value in values.items():
        names += _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]
    return names
