"""The adapter library: every adapter file in a set of folders, described from headers, remembered between starts."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdlora.adapters.files.catalog import PREVIEW_SUFFIXES, Description, describe, require_adapter
from sdlora.adapters.files.container import refuse_pickle
from sdlora.errors import AdapterError

_SUFFIX = ".safetensors"
_FORMAT = 1
_COMPARED_BYTES = 2**20


@dataclass(frozen=True)
class LibraryEntry:
    """One adapter file with what it tells about itself."""

    path: Path
    tag: str
    """The name that `<lora:...>` calls it by, no two the same: the file's name, with folders where that is taken."""
    size_bytes: int
    changed: float
    """Modification time in seconds since the epoch."""
    preview: Path | None
    about: Description

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def words(self) -> str:
        """What a search looks through."""
        about = self.about
        parts = (self.tag, about.title, about.trigger, about.notes, about.family or "", about.kind, *about.tags)
        return " ".join(parts).casefold()


@dataclass(frozen=True)
class Scan:
    """The library at one moment."""

    entries: tuple[LibraryEntry, ...] = ()
    """Newest first."""
    problems: tuple[str, ...] = ()
    """Files that can't be read, with the reason."""

    def by_path(self, path: str | Path) -> LibraryEntry | None:
        """The entry of a file."""
        return next((entry for entry in self.entries if entry.path == Path(path)), None)

    def by_tag(self, tag: str) -> LibraryEntry | None:
        """The entry that a `<lora:...>` tag means: by unique name, else by the name its maker gave it."""
        wanted = tag.casefold()
        for name_of in (lambda entry: entry.tag, lambda entry: entry.name, lambda entry: entry.about.title):
            found = [entry for entry in self.entries if name_of(entry).casefold() == wanted]
            if found:
                return found[0]
        return None

    def search(self, text: str = "", family: str | None = None) -> list[LibraryEntry]:
        """Entries in which every word of the text occurs, of a family if one is given."""
        words = text.casefold().split()
        return [
            entry
            for entry in self.entries
            if family in (None, entry.about.family) and all(word in entry.words for word in words)
        ]


class Library:
    """Looks through folders, reading only the headers of files that are new or changed. Safe from several threads."""

    def __init__(self, folders: Sequence[Path], memory: Path) -> None:
        """memory: JSON file that keeps what was read, so that the next start reads nothing twice."""
        self.folders = tuple(folders)
        self._memory = memory
        self._known: dict[str, Any] = _read_memory(memory)
        self._lock = threading.Lock()
        self._last = Scan()

    @property
    def last(self) -> Scan:
        """What the last `scan` found."""
        return self._last

    def scan(self) -> Scan:
        """Everything there is now. A file that can't be read becomes a sentence in `problems`, never an error."""
        with self._lock:
            known: dict[str, Any] = {}
            found: list[tuple[_Listed, Description]] = []
            problems = []
            for listed in _listing(self.folders):
                key = str(listed.path)
                known[key] = self._remembered(key, listed) or _described(listed)
                if known[key]["problem"]:
                    problems.append(known[key]["problem"])
                elif known[key]["about"] is not None:
                    found.append((listed, _description(known[key]["about"])))
            if known != self._known:
                self._known = known
                _write_memory(self._memory, known)
            self._last = Scan(_entries(found), tuple(problems))
            return self._last

    def _remembered(self, key: str, listed: _Listed) -> dict[str, Any] | None:
        entry = self._known.get(key)
        return entry if entry is not None and entry["stamp"] == listed.stamp else None


def add_file(source: Path, name: str, folder: Path) -> Path:
    """Copy an adapter file into the library; returns its place. The same file again is not copied twice.

    name: its file name; taken names get -2, -3. Raises AdapterError: a pickle, damaged, no adapter.
    """
    refuse_pickle(source)
    if Path(name).suffix.lower() != _SUFFIX:
        raise AdapterError(f"{name} is no .safetensors file; adapters of other kinds are not read")
    require_adapter(source)
    stem = Path(name).stem
    number = 1
    while (target := folder / f"{stem if number == 1 else f'{stem}-{number}'}{_SUFFIX}").exists():
        if _same_content(source, target):
            return target
        number += 1
    folder.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, beside)
    beside.replace(target)
    return target


@dataclass(frozen=True)
class _Listed:
    """One file as its folder's listing shows it."""

    path: Path
    root: Path
    size_bytes: int
    changed: float
    card: Path | None
    card_changed: float
    preview: Path | None

    @property
    def stamp(self) -> list[float]:
        """Changes when the file or its card does."""
        return [self.size_bytes, self.changed, self.card_changed]


def _listing(folders: Sequence[Path]) -> Iterator[_Listed]:
    """All safetensors files in the folders and below, each once; one directory listing a folder, no file opened."""
    seen: set[str] = set()
    for root in folders:
        for place, inner, _ in os.walk(root, followlinks=True):
            if os.path.realpath(place) in seen:
                inner.clear()
                continue
            seen.add(os.path.realpath(place))
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            yield from _listed_in(place, root)


def _listed_in(place: str, root: Path) -> Iterator[_Listed]:
    with os.scandir(place) as listing:
        files = {entry.name: entry for entry in listing if entry.is_file()}
    for name in sorted(files):
        if not name.endswith(_SUFFIX) or name.startswith("."):
            continue
        stem, status = name.removesuffix(_SUFFIX), files[name].stat()
        card = files.get(f"{stem}.json")
        preview = next((files[stem + suffix] for suffix in PREVIEW_SUFFIXES if stem + suffix in files), None)
        yield _Listed(
            path=Path(place, name),
            root=root,
            size_bytes=status.st_size,
            changed=status.st_mtime,
            card=None if card is None else Path(card.path),
            card_changed=0.0 if card is None else card.stat().st_mtime,
            preview=None if preview is None else Path(preview.path),
        )


def _described(listed: _Listed) -> dict[str, Any]:
    about, problem = None, ""
    try:
        about = describe(listed.path, listed.card)
    except (AdapterError, OSError) as error:
        problem = str(error)
    return {"stamp": listed.stamp, "about": None if about is None else asdict(about), "problem": problem}


def _description(values: dict[str, Any]) -> Description:
    return Description(**{**values, "tags": tuple(values["tags"])})


def _entries(found: Sequence[tuple[_Listed, Description]]) -> tuple[LibraryEntry, ...]:
    stems = Counter(listed.path.stem.casefold() for listed, _ in found)
    entries = []
    for listed, about in found:
        is_unique = stems[listed.path.stem.casefold()] == 1
        long_name = listed.path.relative_to(listed.root).with_suffix("").as_posix()
        entries.append(
            LibraryEntry(
                path=listed.path,
                tag=listed.path.stem if is_unique else long_name,
                size_bytes=listed.size_bytes,
                changed=listed.changed,
                preview=listed.preview,
                about=about,
            )
        )
    return tuple(sorted(entries, key=lambda entry: entry.changed, reverse=True))


def _same_content(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(_COMPARED_BYTES):
            if block != second.read(_COMPARED_BYTES):
                return False
    return True


def _read_memory(memory: Path) -> dict[str, Any]:
    """What was read before; nothing if the file is missing, damaged or of another version: then all is read again."""
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
        return dict(content["files"]) if content["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_memory(memory: Path, known: dict[str, Any]) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    beside = memory.with_name(f"{memory.name}.part")
    beside.write_text(json.dumps({"format": _FORMAT, "files": known}, ensure_ascii=False), encoding="utf-8")
    beside.replace(memory)
