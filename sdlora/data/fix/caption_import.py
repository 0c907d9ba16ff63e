"""Captions of a metadata file as .txt files beside their images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PureWindowsPath

from sdlora.data.fix.changes import Change
from sdlora.data.folder_listing import list_folder


def plan_captions(folder: Path, captions: Mapping[str, str]) -> tuple[list[Change], list[str]]:
    """The .txt files that give images their captions, and the names for which there is no image; nothing is touched.

    captions: by image, as a path that is absolute or below the folder, with or without ending. A caption that is there
    already is left alone. Raises DataError for a folder without images.
    """
    folder = folder.expanduser().resolve()
    pictures = list_folder(folder).pictures
    by_name = {path.relative_to(folder).as_posix(): path for path in pictures}
    by_name |= {path.relative_to(folder).with_suffix("").as_posix(): path for path in pictures}
    by_name |= {str(path): path for path in pictures} | {str(path.with_suffix("")): path for path in pictures}
    by_stem = {path.stem: path for path in pictures}
    changes, unknown = [], []
    for name, caption in captions.items():
        plain = PureWindowsPath(name).as_posix()
        image = by_name.get(plain) or by_stem.get(Path(plain).name) or by_stem.get(Path(plain).stem)
        if image is None:
            unknown.append(name)
        elif caption and not image.with_suffix(".txt").exists():
            encode = partial(caption.encode, "utf-8")
            changes.append(Change(("import",), image.with_suffix(".txt"), encode, f"caption: {caption}"))
    return changes, unknown
