"""The files of an image folder, by what their names say they are; nothing is opened."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdlora.data.decoding import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from sdlora.data.scan_problems import refuse_empty_folder
from sdlora.file_memory import changed_at, is_settled, stamp

MASK_ENDING = "-masklabel"
_SYSTEM_NAMES = {
    "__MACOSX": "macOS's notes about files",
    "@eaDir": "a Synology NAS's thumbnails",
    "#recycle": "a NAS's recycle bin",
    "$RECYCLE.BIN": "Windows' recycle bin",
    "System Volume Information": "a system folder",
    "Thumbs.db": "Windows' thumbnails",
    "desktop.ini": "Windows' folder settings",
}


@dataclass(frozen=True)
class Listing:
    """The files of an image folder and its subfolders, by name, without hidden ones."""

    files: list[Path]
    pictures: list[Path]
    """Files that should be images by their ending, masks left out."""
    masks: dict[Path, Path]
    """Mask files by their path without ending."""
    left_out: dict[Path, str]
    """Files and folders that are not read at all, and why."""

    def mask_of(self, picture: Path) -> Path | None:
        """The `name-masklabel` file beside a picture."""
        return self.masks.get(picture.with_name(picture.stem + MASK_ENDING)) if self.masks else None


def list_folder(root: Path) -> Listing:
    """The pictures and masks below a folder, unopened. Raises DataError when there is no picture."""
    left_out: dict[Path, str] = {}
    files = list(_files_below(root, set(), left_out))
    candidates = [path for path in files if path.suffix.lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)]
    pictures = [path for path in candidates if not path.stem.endswith(MASK_ENDING)]
    masks = {path.with_suffix(""): path for path in candidates if path.stem.endswith(MASK_ENDING)}
    if not pictures:
        refuse_empty_folder(root, files)
    return Listing(files, pictures, masks, left_out)


def settled_stamp(folder: Path) -> int:
    """The stamp of a folder to remember facts by; while something in it was just written, another one each time."""
    found, settled = _stamp([folder])
    return found if settled else time.time_ns()


def stamp_of_folders(folders: Iterable[Path]) -> int:
    """A number that changes when a file below these folders is added, removed or written; missing folders count."""
    return _stamp(folders)[0]


def _stamp(folders: Iterable[Path]) -> tuple[int, bool]:
    """The stamp, and whether a further change of any file would show in it."""
    # Together by exclusive or, whatever order the disk gives them in: of ten thousand files a sorted list takes as long
    # as asking for their times.
    together, newest = 0, 0.0
    waiting, visited = [os.fspath(folder) for folder in folders], set()
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    try:
                        status, is_folder = entry.stat(), entry.is_dir()
                    except OSError:  # a link to nowhere, or gone: its neighbours count all the same
                        continue
                    if is_folder:
                        if (place := (status.st_dev, status.st_ino)) in visited:  # links may lead in a circle
                            continue
                        visited.add(place)
                        waiting.append(entry.path)
                    together ^= hash((entry.path, stamp(status)))
                    newest = max(newest, changed_at(status))
        except OSError:  # gone meanwhile, or never there
            continue
    return together, is_settled(newest)


def _files_below(folder: Path, visited: set[Path], left_out: dict[Path, str]) -> Iterator[Path]:
    """Files in a folder and its subfolders, by name; links are followed once. What is passed over goes to left_out."""
    real = folder.resolve()
    if real in visited:
        left_out[folder] = "a link to a folder that is read already"
        return
    visited.add(real)
    with os.scandir(folder) as entries:  # knows what each is without asking the disk again
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        path = folder / entry.name
        reason = _why_left_out(entry)
        if reason is not None:
            if reason:
                left_out[path] = reason
        elif entry.is_dir():
            yield from _files_below(path, visited, left_out)
        else:
            yield path


def _why_left_out(entry: os.DirEntry[str]) -> str | None:
    """Why a file or folder is not looked at; None when it is, "" for sdlora's own files, which nobody need hear of."""
    name = entry.name
    if name.startswith(".sdlora"):
        return ""
    if name in _SYSTEM_NAMES:
        return _SYSTEM_NAMES[name]
    if name.startswith("._"):
        return "macOS's notes about a file"
    if name.startswith("."):
        return "hidden"
    if entry.is_symlink() and not Path(entry).exists():
        return "a link to a file that doesn't exist"
    return None if entry.is_dir() or entry.is_file() else "neither a file nor a folder"
