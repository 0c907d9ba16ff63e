"""Captions of a metadata file as .txt files beside their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from sdlora.data.caption_files import CaptionFolders
from sdlora.data.fix.changes import Change, with_text
from sdlora.data.folder_listing import list_folder


@dataclass
class PlannedCaptions:
    """What taking captions over comes to."""

    changes: list[Change] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Names for which there is no image."""
    kept: list[Path] = field(default_factory=list)
    """Images with a .txt file of another text already."""


def plan_captions(folder: Path, captions: Mapping[str, str]) -> PlannedCaptions:
    """The .txt files that give images their captions; nothing is touched.

    captions: by image, as a path that is absolute or below the folder, with or without ending. A caption that is there
    already is left alone. Raises DataError for a folder without images.
    """
    folder = folder.expanduser().resolve()
    pictures = list_folder(folder).pictures
    by_name = {path.relative_to(folder).as_posix(): path for path in pictures}
    by_name |= {path.relative_to(folder).with_suffix("").as_posix(): path for path in pictures}
    by_name |= {str(path): path for path in pictures} | {str(path.with_suffix("")): path for path in pictures}
    by_stem = {path.stem: path for path in pictures}
    planned, sources = PlannedCaptions(), CaptionFolders(folder)
    for name, caption in captions.items():
        plain = PureWindowsPath(name).as_posix()
        image = by_name.get(plain) or by_stem.get(Path(plain).name) or by_stem.get(Path(plain).stem)
        if image is None:
            planned.unknown.append(name)
        elif caption and not image.with_suffix(".txt").exists():
            planned.changes.append(with_text(("import",), image.with_suffix(".txt"), caption))
        elif caption and sources.own_caption(image) != caption.strip():
            planned.kept.append(image)
    return planned
