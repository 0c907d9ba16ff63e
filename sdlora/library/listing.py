"""The adapter files in folders, as directory listings show them: one look a folder, no file opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sdlora.adapters.files.catalog import PREVIEW_SUFFIXES

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ListedFile:
    """A .safetensors file and what lies beside it; `folder` is the searched one it lies in or below."""

    path: Path
    folder: Path
    size_bytes: int
    changed: float
    """Modification time in seconds since the epoch."""
    card: Path | None = None
    card_changed: float = 0.0
    preview: Path | None = None

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def long_name(self) -> str:
        """The name with the folders between: styles/ink."""
        return self.path.relative_to(self.folder).as_posix().removesuffix(SUFFIX)


def list_files(folders: Sequence[Path]) -> Iterator[ListedFile]:
    """All .safetensors files in the folders and below, sorted by name within a folder.

    Hidden ones are left out. Links are followed; what is reached twice is listed once.
    """
    seen: set[str] = set()
    for folder in folders:
        root = folder.expanduser()
        for place, inner, _ in os.walk(root, followlinks=True):
            if os.path.realpath(place) in seen:
                inner.clear()
                continue
            seen.add(os.path.realpath(place))
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            yield from _list_folder(place, root, seen)


def _list_folder(place: str, root: Path, seen: set[str]) -> Iterator[ListedFile]:
    files, facts = {}, {}
    with suppress(OSError), os.scandir(place) as listing:
        for entry in listing:
            with suppress(OSError):  # links in a circle; deleted just now
                if entry.is_file():
                    facts[entry.name], files[entry.name] = entry.stat(), entry
    for name in sorted(files):
        if not name.endswith(SUFFIX) or name.startswith("."):
            continue
        # realpath asks the disk for every part of a path, which for thousands of files is slow: only links need it.
        real = os.path.realpath(files[name].path) if files[name].is_symlink() else files[name].path
        if real in seen:
            continue
        seen.add(real)
        stem, status = name.removesuffix(SUFFIX), facts[name]
        card, card_facts = files.get(f"{stem}.json"), facts.get(f"{stem}.json")
        preview = next((files[stem + suffix] for suffix in PREVIEW_SUFFIXES if stem + suffix in files), None)
        yield ListedFile(
            path=Path(place, name),
            folder=root,
            size_bytes=status.st_size,
            changed=status.st_mtime,
            card=None if card is None else Path(card.path),
            card_changed=0.0 if card_facts is None else max(card_facts.st_mtime, card_facts.st_ctime),
            preview=None if preview is None else Path(preview.path),
        )
