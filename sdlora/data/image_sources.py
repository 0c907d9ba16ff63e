"""The image folders of a run, each with the settings that hold in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.config.images import CaptionsConfig, ImageFolder, ImagesConfig
from sdlora.config.shipped import resolve_folder


@dataclass(frozen=True)
class Source:
    """An image folder and the settings that hold in it."""

    folder: Path
    images: ImagesConfig
    captions: CaptionsConfig
    repeats: int | None = None
    resolutions: tuple[int, ...] = ()
    """Its own target resolutions; empty for the run's."""
    is_class: bool = False
    loss_weight: float = 1.0
    number: int = 0
    """Its place among the folders: one that is named twice, with other settings, trains its images both ways."""


def sources_of(
    images: ImagesConfig, captions: CaptionsConfig, folders: Sequence[Path] | None = None, *, is_class: bool = False
) -> list[Source]:
    """The configured folders with their settings, or plain `folders` in their place (is_class: as class images)."""
    if folders is None:
        named = [each.model_copy(update={"folder": each.folder.expanduser().absolute()}) for each in images.sources]
        # The very same entry again would only double the repeats, which there is a setting for.
        chosen = [(number, each) for number, each in enumerate(named) if each not in named[:number]]
    else:  # a folder that the configuration names keeps its settings
        configured = {source.folder.expanduser().absolute(): source for source in reversed(images.sources)}
        paths = [resolve_folder(folder).expanduser().absolute() for folder in folders]
        chosen = list(enumerate(configured.get(path) or ImageFolder(folder=path, is_class=is_class) for path in paths))
    return [
        Source(
            folder=source.folder.expanduser().absolute(),
            images=source.images(images),
            captions=source.captions(captions),
            repeats=source.repeats,
            resolutions=() if source.resolution is None else source.images(images).resolutions,
            is_class=source.is_class,
            loss_weight=source.loss_weight,
            number=number,
        )
        for number, source in chosen
    ]


def inner_folders(root: Path, roots: Iterable[Path]) -> list[Path]:
    """Those of the folders that lie below `root`: what is in them has their settings, whatever their order."""
    return [other for other in roots if other != root and other.is_relative_to(root)]
