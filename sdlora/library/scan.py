"""The adapter library: every adapter file in a set of folders, described from headers, remembered between starts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sdlora import atomic
from sdlora.adapters.files.catalog import Description, describe, require_adapter
from sdlora.adapters.files.container import refuse_pickle
from sdlora.constants import MIB
from sdlora.disk import explain
from sdlora.errors import AdapterError
from sdlora.file_memory import FileMemory
from sdlora.library.listing import SUFFIX, ListedFile, list_files
from sdlora.library.names import resolve, unique_names
from sdlora.library.prompt_tags import UNTAGGABLE, can_be_tagged

# Goes up when more is read of a file, so that all are described anew.
_FORMAT = 2
_COMPARED_BYTES = MIB


@dataclass(frozen=True)
class LibraryEntry:
    """One adapter file with what it tells about itself."""

    file: ListedFile
    tag: str
    """The name that `<lora:...>` calls it by, no two the same: the file's name, with folders where that is taken."""
    about: Description

    @property
    def path(self) -> Path:
        """The file's path, by which rows and runs mean this entry."""
        return self.file.path

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.file.name

    @property
    def long_name(self) -> str:
        """The name with the folders between."""
        return self.file.long_name

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names that stand in its metadata."""
        return self.about.own_names

    @property
    def words(self) -> str:
        """What a search compares, in small letters."""
        about = self.about
        parts = (self.tag, about.title, about.trigger, about.notes, about.family or "", about.kind, *about.tags)
        return " ".join(parts).casefold()


@dataclass(frozen=True)
class Scan:
    """The library as it was found at one moment; never changed, a new scan makes a new one."""

    entries: tuple[LibraryEntry, ...] = ()
    """Newest first."""
    problems: tuple[str, ...] = ()
    """Files that can't be read, with the reason."""

    def by_path(self, path: str | Path) -> LibraryEntry | None:
        """The entry of a file, None for one that the scan didn't find or couldn't read."""
        return next((entry for entry in self.entries if entry.path == Path(path)), None)

    def find(self, name: str) -> LibraryEntry:
        """The entry that a name means, as everywhere (see `names`). Raises ConfigError: nobody's, or several files'."""
        return resolve(name, self.entries, "the library")

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
        self._memory = FileMemory(memory, version=_FORMAT)
        self._lock = threading.Lock()
        self._last = Scan()

    @property
    def last(self) -> Scan:
        """What the last `scan` found."""
        return self._last

    def scan(self) -> Scan:
        """Everything there is now. A file that can't be read becomes a sentence in `problems`, never an error."""
        with self._lock:
            found: list[tuple[ListedFile, Description]] = []
            problems = []
            for file in list_files(self.folders):
                try:
                    entry = self._memory.get(file.path, partial(_read, file), also=file.card_changed)
                except FileNotFoundError:  # deleted just now
                    continue
                except OSError as error:
                    problems.append(f"{explain(error, file.path)}.")
                    continue
                if entry["problem"]:
                    problems.append(entry["problem"])
                elif entry["about"] is not None:
                    about = Description(**{name: _as_tuple(value) for name, value in entry["about"].items()})
                    found.append((file, about))
            self._memory.save()
            tags = unique_names([file for file, _ in found])
            entries = [LibraryEntry(file, tags[file.path], about) for file, about in found]
            entries.sort(key=lambda entry: entry.file.changed, reverse=True)
            self._last = Scan(tuple(entries), tuple(problems))
            return self._last


def add_file(source: Path, name: str, folder: Path) -> Path:
    """Copy an adapter file into the library; returns its place. The same file again is not copied twice.

    name: its file name; taken names get -2, -3. Raises AdapterError: a pickle, damaged, no adapter, a name
    that `<lora:...>` has no place for.
    """
    refuse_pickle(source)
    if Path(name).suffix.lower() != SUFFIX:
        raise AdapterError(f"{name} is no .safetensors file; adapters of other kinds are not read")
    if not can_be_tagged(Path(name).stem):
        raise AdapterError(f"{name}: {UNTAGGABLE}")
    require_adapter(source)
    folder.mkdir(parents=True, exist_ok=True)
    for free in atomic.numbered(Path(name).stem):
        target = folder / f"{free}{SUFFIX}"
        if not target.exists():
            atomic.copy_file(source, target)
            return target
        if _same_content(source, target):
            return target
    raise AssertionError("numbers don't end")


def _read(file: ListedFile) -> dict[str, Any]:
    about, problem = None, ""
    try:
        about = describe(file.path, file.card)
    except (AdapterError, OSError) as error:
        problem = str(error)
    return {"about": None if about is None else asdict(about), "problem": problem}


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, which a Description holds: JSON has lists only."""
    return tuple(value) if isinstance(value, list) else value


def _same_content(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(_COMPARED_BYTES):
            if block != second.read(_COMPARED_BYTES):
                return False
    return True
