"""What a file holds (size, alpha, hash), remembered so that an unchanged file is decoded and hashed once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sdlora import atomic
from sdlora.data.decoding import open_image, oriented_size

_FORMAT = 1
_SETTLED_SECONDS = 2.0
"""A file changed more recently than this is not remembered: file systems round times, so it may change unseen."""


@dataclass(frozen=True)
class ImageFacts:
    """Facts about one readable image file; width and height are those after EXIF orientation."""

    width_px: int
    height_px: int
    has_alpha: bool
    content_hash: str
    """SHA-256 of the file's bytes, in hex."""


def inspect(path: Path, max_megapixels: float) -> ImageFacts:
    """Decode and hash one image file. Raises decoding.UnreadableImageError with the reason."""
    with open_image(path, max_megapixels) as image:
        width_px, height_px = oriented_size(image)
        has_alpha = image.has_transparency_data
        image.draft("RGB", (64, 64))  # lets JPEG decode at an eighth: enough to find truncation, several times faster
        image.load()
    return ImageFacts(width_px, height_px, has_alpha, hash_file(path))


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class ImageFactsMemory:
    """Inspections of one image folder, kept in the cache folder by file name, size and modification time.

    Two processes may write at once: the last one wins, and the other's work is done again next time.
    """

    def __init__(self, image_folder: Path, cache_folder: Path | None) -> None:
        """cache_folder None remembers nothing."""
        self._image_folder = image_folder.resolve()
        name = hashlib.sha256(str(self._image_folder).encode("utf-8", "surrogatepass")).hexdigest()
        self._file = cache_folder / "scans" / f"{name}.json" if cache_folder else None
        self._known = self._read()
        self._seen: dict[str, dict[str, object]] = {}

    def inspect(self, path: Path, max_megapixels: float) -> ImageFacts:
        """The file's facts, from memory if it has not changed. Raises decoding.UnreadableImageError."""
        name, status = self._name(path), path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self._known.get(name)
        facts = _facts(entry) if entry and entry.get("stamp") == stamp else None
        if facts is None or facts.width_px * facts.height_px > max_megapixels * 1e6:
            facts = inspect(path, max_megapixels)
        if time.time() - status.st_mtime > _SETTLED_SECONDS:
            self._seen[name] = {"stamp": stamp, **asdict(facts)}
        return facts

    def save(self) -> None:
        """Write what this scan saw. A folder that can't be written is no error: the next scan is only slower."""
        if self._file is None or self._seen == self._known:
            return
        with suppress(OSError):
            atomic.write_json(self._file, {"format": _FORMAT, "files": self._seen}, parents=True)

    def _name(self, path: Path) -> str:
        return os.path.relpath(path.absolute(), self._image_folder)

    def _read(self) -> dict[str, dict[str, object]]:
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content["files"] if isinstance(content, dict) and content.get("format") == _FORMAT else {}


def _facts(entry: dict[str, object]) -> ImageFacts | None:
    try:
        return ImageFacts(**{key: value for key, value in entry.items() if key != "stamp"})  # type: ignore[arg-type]
    except TypeError:
        return None
