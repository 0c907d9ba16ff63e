"""The images generated so far: found on disk, searched by what they say about themselves, paged, zipped."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.errors import DataError
from sdlora.generation.restore.image_files import SUFFIXES, read_image_settings

PAGE_IMAGES = 48
_FORMAT = 1


@dataclass(frozen=True)
class HistoryImage:
    """One image file, with the words that a search finds it by."""

    path: Path
    changed: float
    """Modification time in seconds since the epoch."""
    prompt: str
    words: str


@dataclass(frozen=True)
class Page:
    """A stretch of a list of images. `number` counts from 1, `num_pages` is at least 1."""

    images: tuple[HistoryImage, ...]
    number: int
    num_pages: int
    num_images: int


class History:
    """Looks through the outputs folder, opening only files that are new or changed. Safe from several threads."""

    def __init__(self, folder: Path, memory: Path) -> None:
        """memory: JSON file that keeps what was read."""
        self.folder = folder
        self._memory = memory
        self._known: dict[str, Any] = _read_memory(memory)
        self._lock = threading.Lock()

    def images(self, text: str = "") -> list[HistoryImage]:
        """All images in which every word of the text occurs, newest first."""
        wanted = text.casefold().split()
        return [image for image in self._scan() if all(word in image.words for word in wanted)]

    def page(self, number: int, text: str = "") -> Page:
        """A page of them; numbers beyond the ends give the first or last page."""
        images = self.images(text)
        num_pages = max(1, -(-len(images) // PAGE_IMAGES))
        number = min(max(1, number), num_pages)
        first = (number - 1) * PAGE_IMAGES
        return Page(tuple(images[first : first + PAGE_IMAGES]), number, num_pages, len(images))

    def _scan(self) -> list[HistoryImage]:
        with self._lock:
            known: dict[str, Any] = {}
            found = []
            for place, inner, names in os.walk(self.folder):
                inner[:] = [name for name in inner if not name.startswith(".")]
                for name in names:
                    if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                        path = Path(place, name)
                        entry = self._entry(path)
                        if entry is not None:
                            known[str(path)] = entry
                            found.append(HistoryImage(path, entry["stamp"][1], entry["prompt"], entry["words"]))
            if known != self._known:
                self._known = known
                _write_memory(self._memory, known)
        return sorted(found, key=lambda image: (image.changed, image.path.name), reverse=True)

    def _entry(self, path: Path) -> dict[str, Any] | None:
        try:
            status = path.stat()
        except OSError:  # deleted just now
            return None
        stamp = [status.st_size, status.st_mtime]
        before = self._known.get(str(path))
        if before is not None and before["stamp"] == stamp:
            return dict(before)
        prompt, words = _told_by(path)
        return {"stamp": stamp, "prompt": prompt, "words": f"{words} {path.name}".casefold()}


def write_zip(images: Sequence[Path], target: Path) -> Path:
    """All images in one zip file, not compressed again; equal names get a number. Missing ones are left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            if not image.is_file():
                continue
            number, name = 1, image.name
            while name in taken:
                number += 1
                name = f"{image.stem}-{number}{image.suffix}"
            taken.add(name)
            archive.write(image, name)
    return target


def _told_by(path: Path) -> tuple[str, str]:
    """Prompt and searchable words of an image; both empty when it tells nothing."""
    try:
        told = read_image_settings(path)
    except DataError:
        return "", ""
    prompt = str(told.values.get("prompt", ""))
    adapters = [Path(str(one.get("file", ""))).stem for one in told.values.get("adapters", []) if isinstance(one, dict)]
    parts = [prompt, str(told.values.get("negative", "")), told.model_name or "", *adapters, *told.adapter_hashes]
    return prompt, " ".join([*parts, str(told.values.get("sampler", "")), str(told.values.get("seed", ""))])


def _read_memory(memory: Path) -> dict[str, Any]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
        return dict(content["images"]) if content["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_memory(memory: Path, known: dict[str, Any]) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    beside = memory.with_name(f"{memory.name}.part")
    beside.write_text(json.dumps({"format": _FORMAT, "images": known}, ensure_ascii=False), encoding="utf-8")
    beside.replace(memory)
