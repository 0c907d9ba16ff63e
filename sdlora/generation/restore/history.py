"""The images generated so far: found on disk, searched by what they say about themselves, zipped."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sdlora import atomic
from sdlora.errors import DataError
from sdlora.file_memory import FileMemory
from sdlora.generation.restore.image_files import SUFFIXES, read_image_settings

# Goes up when more is kept of an image, so that all are read again.
_FORMAT = 2


@dataclass(frozen=True)
class HistoryImage:
    """One image file, with the words that a search finds it by."""

    path: Path
    changed: float
    """Modification time in seconds since the epoch."""
    prompt: str
    words: str


class History:
    """Looks through a folder of images, opening only files that are new or changed. Safe from several threads."""

    def __init__(self, folder: Path, memory: Path) -> None:
        """memory: JSON file that keeps what was read."""
        self.folder = folder
        self._memory = FileMemory(memory, version=_FORMAT)
        self._lock = threading.Lock()

    def images(self, text: str = "") -> list[HistoryImage]:
        """All images in which every word of the text occurs, newest first."""
        wanted = text.casefold().split()
        return [image for image in self._scan() if all(word in image.words for word in wanted)]

    def _scan(self) -> list[HistoryImage]:
        with self._lock:
            found: list[HistoryImage] = []
            for place, inner, names in os.walk(self.folder):
                inner[:] = [name for name in inner if not name.startswith(".")]
                for name in names:
                    path = Path(place, name)
                    if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                        with suppress(OSError):  # deleted just now, or a link to nowhere
                            told = self._memory.get(path, partial(_told_by, path))
                            found.append(HistoryImage(path, path.stat().st_mtime, told["prompt"], told["words"]))
            self._memory.save()
        return sorted(found, key=lambda image: (image.changed, image.path.name), reverse=True)


def write_zip(images: Sequence[Path], target: Path) -> Path:
    """All images in one zip file, not compressed again; equal names get a number. Missing ones are left out."""
    taken: set[str] = set()
    # Made for one download and never needed after a power cut, so it isn't forced to the disk.
    writing = atomic.writing(target, parents=True, durable=False, large=True)
    with writing as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            if image.is_file():
                names = (f"{stem}{image.suffix}" for stem in atomic.numbered(image.stem))
                name = next(name for name in names if name not in taken)
                taken.add(name)
                archive.write(image, name)
    return target


def _told_by(path: Path) -> dict[str, Any]:
    """Prompt and searchable words of an image; all but its name is empty when it tells nothing."""
    try:
        told = read_image_settings(path)
    except DataError:
        return {"prompt": "", "words": path.name.casefold()}
    values = told.values
    prompt = str(values.get("prompt", ""))
    adapters = [Path(str(one.get("file", ""))).stem for one in values.get("adapters", []) if isinstance(one, dict)]
    others = [str(values.get(name, "")) for name in ("negative", "sampler", "seed")]
    words = " ".join([prompt, *others, told.model_name or "", *adapters, *told.adapter_hashes, path.name])
    return {"prompt": prompt, "words": words.casefold()}
