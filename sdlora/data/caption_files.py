"""The caption of each image: from a .txt file beside it, a metadata file, or the name of its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from sdlora.config.images import CaptionsConfig
from sdlora.data.metadata_files import METADATA_FILES, NAMES_TOLD, ImageRows, ImageText, ImageTexts, read_metadata
from sdlora.errors import MissingPackageError
from sdlora.text_files import UnreadableTextError, decode_text, read_file
from sdlora.words import first_few

CaptionSource = Literal["file", "metadata", "folder"]
"""Where a caption comes from: a file beside the image, a metadata file, or the name of a `10_name` folder."""
_REPEATS_FOLDER = re.compile(r"(\d{1,3})_(.+)")
_LONG_NUMBER = re.compile(r"(\d{4,9})_.+")


class CaptionFolders:
    """Caption sources of one image folder and its subfolders; reads each metadata file once.

    `problems` gathers a sentence for each caption file that can't be read; those that are no text in UTF-8 or UTF-16
    are in `wrongly_encoded` too.
    """

    def __init__(self, root: Path, config: CaptionsConfig | None = None) -> None:
        """config: tells the endings of caption files, by default .txt alone."""
        config = config or CaptionsConfig()
        self.root = root
        self.problems: list[str] = []
        self.wrongly_encoded: dict[Path, str] = {}
        self._extension = config.extension
        self._alternatives = config.alternatives
        self._metadata: dict[Path, ImageRows] = {}
        # By folder: found out once, though thousands of images may lie there.
        self._folder_names: dict[Path, str | None] = {}
        self._sources: dict[Path, Sequence[tuple[Path, ImageRows]]] = {}
        self._notes: list[str] = []
        self._overruled: dict[Path, CaptionSource] = {}
        """Images of which a metadata file says something else than what is trained, and where that comes from."""

    def caption(self, image: Path) -> str | None:
        """The image's own caption, or None. The nearest source wins: caption file, metadata file, folder name.

        An empty source counts as none. A caption file that can't be read gives "", and a sentence in `problems`.
        """
        return self.found(image)[0]

    def found(self, image: Path) -> tuple[str | None, CaptionSource | None]:
        """The image's caption as `caption` gives it, and where it was found."""
        beside = self._beside(image)
        rows = [text for row in self._rows(image) if (text := (row.caption or "").strip())]
        own = next(iter(rows), None) if beside is None else beside
        if own is None:
            name = self.folder_name(image)
            return name, None if name is None else "folder"
        source: CaptionSource = "metadata" if beside is None else "file"
        if own and any(text != own for text in rows):
            self._overruled[image] = source
        return own, source

    def alternatives(self, image: Path) -> tuple[tuple[str, float], ...]:
        """The image's other captions, from files with further endings, each with its chance."""
        texts = ((self._beside(image, ending), chance) for ending, chance in self._alternatives.items())
        return tuple((text, chance) for text, chance in texts if text)

    def loss_weight(self, image: Path) -> float:
        """The factor on the image's loss that a metadata file gives; 1 without one."""
        return next((row.loss_weight for row in self._rows(image) if row.loss_weight is not None), 1.0)

    def own_caption(self, image: Path) -> str | None:
        """The caption that was written for this image, so not its folder's name; "" for a .txt that can't be read."""
        text, source = self.found(image)
        return None if source == "folder" else text

    def _beside(self, image: Path, ending: str | None = None) -> str | None:
        path = image.with_suffix(ending or self._extension)
        try:
            content = read_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems.append(f"{self._name(path)} can't be read: {error.strerror or error}")
            return ""
        text = self._decode(path, content)
        return "" if text is None else text.strip() or None

    def _rows(self, image: Path) -> Iterator[ImageText]:
        """What metadata files say about an image, the nearest first."""
        for folder, rows in self._sources_for(image.parent):
            if row := rows.of(image, folder):
                yield row

    def _sources_for(self, folder: Path) -> Sequence[tuple[Path, ImageRows]]:
        """The metadata files that may tell of a folder's images, the nearest first, each with its own folder."""
        if folder not in self._sources:
            above = () if folder == self.root or folder.parent == folder else self._sources_for(folder.parent)
            rows = self._metadata_of(folder)
            self._sources[folder] = ((folder, rows), *above) if rows.texts else above
        return self._sources[folder]

    def folder_name(self, image: Path) -> str | None:
        """What stands in for a caption where there is none: the name of the image's `10_name` folder."""
        folder = image.parent
        if folder not in self._folder_names:
            repeated = repeats_folder(folder, self.root)
            self._folder_names[folder] = repeated[1] if repeated else None
        return self._folder_names[folder]

    def notes(self) -> list[str]:
        """What metadata files say that is not trained as it stands; ask when all captions have been asked for."""
        unmatched = [
            f"{self._name(folder) or '.'}: {len(rows.left)} rows of its metadata name no image that is trained here "
            f"({first_few(rows.left, NAMES_TOLD)})"
            for folder, rows in self._metadata.items()
            if rows.left
        ]
        return [*self._notes, *unmatched, *self._conflicts()]

    def _conflicts(self) -> Iterator[str]:
        for source, trained in (
            ("file", f"the {self._extension} file beside it is trained, not what its metadata file says otherwise"),
            ("metadata", "the metadata file nearest to it is trained, not what one further up says otherwise"),
        ):
            if names := [self._name(image) for image, winner in self._overruled.items() if winner == source]:
                yield f"{first_few(names, NAMES_TOLD)}: {trained}"

    def _metadata_of(self, folder: Path) -> ImageRows:
        if folder not in self._metadata:
            paths = [path for name in METADATA_FILES if (path := folder / name).is_file()]
            self._metadata[folder] = ImageRows(self._read_metadata(paths[0]) if paths else {})
            if len(paths) > 1:
                others = ", ".join(path.name for path in paths[1:])
                self._notes.append(f"{self._name(paths[0])} is read, {others} beside it not")
        return self._metadata[folder]

    def _read_metadata(self, path: Path) -> ImageTexts:
        try:
            captions, problems, notes = read_metadata(path)
        except UnreadableTextError as error:
            self.problems.append(f"{self._name(path)} {error}")
            return {}
        except (OSError, MissingPackageError) as error:
            self.problems.append(f"{self._name(path)} can't be read: {getattr(error, 'strerror', None) or error}")
            return {}
        self.problems += [f"{self._name(path)}, {problem}" for problem in problems]
        self._notes += [f"{self._name(path)}, {note}" for note in notes]
        return captions

    def _decode(self, path: Path, content: bytes) -> str | None:
        try:
            return decode_text(content)
        except UnreadableTextError as error:
            self.wrongly_encoded[path] = sentence = f"{self._name(path)} {error}"
            self.problems.append(sentence)
            return None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def long_number(folder: Path, root: Path) -> int | None:
    """The number of a folder called `1000_name`, which `repeats_folder` takes for a part of the name."""
    match = _LONG_NUMBER.fullmatch(folder.name)
    return int(match[1]) if match and folder.is_relative_to(root) else None


def repeats_folder(folder: Path, root: Path) -> tuple[int, str] | None:
    """Repeats and name from the nearest folder called `10_name`, from `folder` up to and including `root`.

    One to three digits count; a longer number (`2024_holiday`) is part of the name.
    """
    for candidate in (folder, *folder.parents):
        match = _REPEATS_FOLDER.fullmatch(candidate.name)
        if match:
            return int(match[1]), match[2].strip()
        if candidate == root:
            return None
    return None
