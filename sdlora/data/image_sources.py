"""The image folders of a run, each with the settings that hold in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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

    def trains_like(self, other: Source) -> bool:
        """Whether an image in either folder is trained in the same way."""
        return replace(self, folder=other.folder, number=other.number) == other


def sources_of(
    images: ImagesConfig, captions: CaptionsConfig, folders: Sequence[Path] | None = None, *, is_class: bool = False
) -> list[Source]:
    """The configured folders with their settings, that of the class images among them; or plain `folders` instead.

    is_class: these are class images.
    """
    if folders is None:
        apart = () if images.class_folder is None else (_class_source(images.class_folder),)
        configured_folders = (*images.sources, *apart)
        named = [each.model_copy(update={"folder": each.folder.expanduser().absolute()}) for each in configured_folders]
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


def _class_source(folder: Path) -> ImageFolder:
    return ImageFolder(folder=resolve_folder(folder), is_class=True)


def inner_folders(root: Path, roots: Iterable[Path]) -> list[Path]:
    """Those of the folders that lie below `root`: what is in them has their settings, whatever their order."""
    return [other for other in roots if other != root and other.is_relative_to(root)]
