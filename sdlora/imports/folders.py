"""Several image folders of another trainer, each with settings of its own, in our terms."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from sdlora.config.images import ImageFolder
from sdlora.imports.translation import Translation

LOSS_WEIGHT = "images.loss_weight"
"""Stands for an entry's own loss weight, which has no setting for all folders."""
_REPEATS = "images.repeats"
_MOST_NAMED = 3
"""Folders in a sentence."""
_NAMED_REPEATS = re.compile(r"\d{1,3}_.+")
_OF_FOLDERS = {
    f"{section}.{name}": name
    for name in ImageFolder.model_fields
    for section in ("images", "captions")
    if name not in ("folder", "is_class")
}
"""What a folder can hold for itself: name as a setting of all folders, name in images.folders."""


@dataclass
class SourceFolder:
    """One folder as another trainer has it: `own` are its settings by our dotted names, and what was lost of them."""

    path: str
    own: Translation = field(default_factory=Translation)
    is_class: bool = False


def put_folders(result: Translation, sources: Sequence[SourceFolder]) -> None:
    """Enter the folders: as plain ones where one setting holds for all, else as images.folders.

    Of the trainers that list their folders none reads repeats from a name such as `10_cat`, as ours does; there each
    folder says for itself how often its images are seen, once too.
    """
    if not sources:
        return
    is_named = any(_has_repeats_in_name(source.path) for source in sources)
    _put_sentences(result, sources)
    for source in sources:
        result.sources |= source.own.sources
    trained = [source for source in sources if not source.is_class]
    classes = [source for source in sources if source.is_class]
    if trained and not is_named and len(classes) <= 1 and _are_alike(trained, classes):
        paths = [source.path for source in trained]
        result.put("images.folder", paths[0] if len(paths) == 1 else paths)
        result.put("images.class_folder", classes[0].path if classes else None)
        result.values |= trained[0].own.values
        return
    for source in sources:
        # Names count before images.repeats, and not all can be seen from here; an entry's own repeats go before both.
        source.own.values.setdefault(_REPEATS, 1)
    common = _common(sources)
    result.values |= common
    _put_first(result, sources, common)
    result.put("images.folders", [_entry(source, common) for source in sources])


def _has_repeats_in_name(path: str) -> bool:
    """Whether the folder, or one below it where it is at hand, is called as sd-scripts' folders with repeats are."""
    if _NAMED_REPEATS.fullmatch(PureWindowsPath(path).name):
        return True
    try:
        below = os.walk(Path(path).expanduser())
        return any(_NAMED_REPEATS.fullmatch(name) for _, folders, _ in below for name in folders)
    except (ValueError, RuntimeError):  # no name that a folder can have
        return False


def _are_alike(trained: Sequence[SourceFolder], classes: Sequence[SourceFolder]) -> bool:
    first = trained[0].own.values
    own = [LOSS_WEIGHT in first, *(source.own.values != first for source in trained[1:])]
    # What a class folder doesn't say itself is as it is for the others.
    of_classes = [first.get(name) != value for source in classes for name, value in source.own.values.items()]
    return not any(own + of_classes)


def _common(sources: Sequence[SourceFolder]) -> dict[str, Any]:
    first = sources[0].own.values
    return {
        name: value
        for name, value in first.items()
        if name not in (LOSS_WEIGHT, _REPEATS) and all(source.own.values.get(name) == value for source in sources)
    }


def _put_first(result: Translation, sources: Sequence[SourceFolder], common: Mapping[str, Any]) -> None:
    """What holds for all folders here and differs there: the first that says something is taken, the others told."""
    names = dict.fromkeys(name for source in sources for name in source.own.values)
    for name in (name for name in names if name not in common and name not in _OF_FOLDERS):
        chosen = next(source for source in sources if name in source.own.values)
        value = chosen.own.values[name]
        result.put(name, value)
        others: dict[str, list[str]] = {}
        for source in sources:
            if source.own.values.get(name) != value:
                others.setdefault(str(source.own.values.get(name, "not set")), []).append(source.path)
        for other, paths in others.items():
            result.lose(f"{_listed(paths)}: {name}", other, f"one value holds for all folders: {value}")


def _listed(paths: Sequence[str]) -> str:
    more = len(paths) - _MOST_NAMED
    return ", ".join([*paths[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])])


def _entry(source: SourceFolder, common: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        _OF_FOLDERS[name]: value
        for name, value in source.own.values.items()
        if name in _OF_FOLDERS and name not in common
    }
    return {"folder": source.path, **own, **({"is_class": True} if source.is_class else {})}


def _put_sentences(result: Translation, sources: Sequence[SourceFolder]) -> None:
    """What was lost or changed: once where it is true of all folders, else with the folder's name."""
    for kind in ("lost", "changed"):
        told: list[str] = getattr(result, kind)
        by_source = [list(getattr(source.own, kind)) for source in sources]
        everywhere = [one for one in by_source[0] if all(one in each for each in by_source)]
        told += everywhere
        for source, sentences in zip(sources, by_source, strict=True):
            told += [f"{source.path}: {one}" for one in sentences if one not in everywhere]
