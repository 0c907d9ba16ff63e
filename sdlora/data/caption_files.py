"""The caption of each image: from a .txt file beside it, a metadata file, or the name of its folder."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from sdlora.data.metadata_files import METADATA_FILES, read_metadata
from sdlora.errors import MissingPackageError

_REPEATS_FOLDER = re.compile(r"(\d{1,3})_(.+)")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class CaptionFolders:
    """Caption sources of one image folder and its subfolders; reads each metadata file once.

    `problems` gathers a sentence for each caption file that can't be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []
        self._metadata: dict[Path, dict[str, str]] = {}

    def caption(self, image: Path) -> str | None:
        """The image's own caption, or None. The nearest source wins: .txt, metadata file, folder name.

        An empty source counts as none. A .txt that can't be read gives "", and a sentence in `problems`.
        """
        sources = (self._beside, self._from_metadata, self._from_folder_name)
        return next((text for source in sources if (text := source(image)) is not None), None)

    def own_caption(self, image: Path) -> str | None:
        """The caption that was written for this image, so not its folder's name; "" for a .txt that can't be read."""
        text = self._beside(image)
        return self._from_metadata(image) if text is None else text

    def _beside(self, image: Path) -> str | None:
        path = image.with_suffix(".txt")
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems.append(f"{self._name(path)} can't be read: {error.strerror or error}")
            return ""
        text = self._decode(path, content)
        return "" if text is None else text.strip() or None

    def _from_metadata(self, image: Path) -> str | None:
        for folder in (image.parent, *image.parent.parents):
            text = self._metadata_of(folder).get(image.relative_to(folder).as_posix(), "").strip()
            if text:
                return text
            if folder == self.root:
                break
        return None

    def _from_folder_name(self, image: Path) -> str | None:
        repeated = repeats_folder(image.parent, self.root)
        return repeated[1] if repeated else None

    def _metadata_of(self, folder: Path) -> dict[str, str]:
        if folder not in self._metadata:
            paths = [folder / name for name in METADATA_FILES]
            path = next((path for path in paths if path.is_file()), None)
            self._metadata[folder] = self._read_metadata(path) if path else {}
        return self._metadata[folder]

    def _read_metadata(self, path: Path) -> dict[str, str]:
        try:
            captions, problems = read_metadata(path, decode_text)
        except UnicodeDecodeError as error:
            self.problems.append(self._undecodable(path, error))
            return {}
        except (OSError, MissingPackageError) as error:
            self.problems.append(f"{self._name(path)} can't be read: {getattr(error, 'strerror', None) or error}")
            return {}
        self.problems += [f"{self._name(path)}, {problem}" for problem in problems]
        return captions

    def _decode(self, path: Path, content: bytes) -> str | None:
        try:
            return decode_text(content)
        except UnicodeDecodeError as error:
            self.problems.append(self._undecodable(path, error))
            return None

    def _undecodable(self, path: Path, error: UnicodeDecodeError) -> str:
        found = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        return f"{self._name(path)} is not UTF-8 text ({found}): save it as UTF-8"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def decode_text(content: bytes) -> str:
    """The text of a caption file: UTF-8 with or without mark, or UTF-16 with its mark. Raises UnicodeDecodeError."""
    return content.decode("utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig")


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
