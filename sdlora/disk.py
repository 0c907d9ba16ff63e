"""What a disk can't do, in words that say what to do about it, and how much room it has."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from sdlora.constants import MIB

_LONGEST_NAME_BYTES = 255
"""What nearly every file system allows for one file or folder."""


def explain(error: OSError, place: Path | None = None) -> str:
    """What the system's error means: which file or disk, what is wrong, what to do. `place` if the error names none."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else place
    where = str(path) if path is not None else "a file"
    if path is None and "temporary directory" in str(error.strerror):
        return f"{error.strerror}: make room there, or name a folder that can be written to in $TMPDIR"
    match error.errno:
        case errno.ENOSPC:
            free = f", {free_bytes(path) / MIB:.1f} MiB are free" if path is not None else ""
            return f"{where} can't be written: its disk is full{free}. Make room, or write to a larger disk"
        case errno.EDQUOT:
            return f"{where} can't be written: your quota on its disk is used up. Delete what you don't need there"
        case errno.EROFS:
            return f"{where} can't be written: its disk is read-only. Choose a folder on another one"
        case errno.EIO:
            return f"{where} can't be read or written: its disk reports an input/output error. Is it failing?"
        case errno.EACCES | errno.EPERM:
            return f"{where} can't be opened or written: no permission. Choose another, or change its permissions"
        case errno.ENAMETOOLONG:
            return f"{where}: a name in this path is longer than the disk allows ({_LONGEST_NAME_BYTES} bytes)"
        case errno.ENOTDIR:
            return f"{where}: a part of this path is a file where a folder is needed"
        case errno.EEXIST:
            return f"{where} exists already, as something else than is needed here"
        case errno.EISDIR:
            return f"{where} is a folder where a file is needed"
        case errno.ELOOP:
            return f"{where}: its links lead in a circle. Choose another, or give what they should lead to"
        case errno.ENOENT:
            return f"there is no {where}"
        case errno.EMFILE | errno.ENFILE:
            return f"{where} can't be opened: too many files are open. Raise the limit (ulimit -n)"
    return f"{where}: {error.strerror or error}"


def circle_of_links(error: RuntimeError) -> OSError | None:
    """The system's error behind one that `Path.resolve` made of it; None for any other. Python 3.13 leaves it be."""
    found = re.fullmatch(r"Symlink loop from '(.*)'", str(error))
    return OSError(errno.ELOOP, os.strerror(errno.ELOOP), found[1]) if found else None


def is_file(path: Path) -> bool:
    """Whether there is a file; False, too, where that can't be told: no permission, links in a circle.

    For lists of what lies in a folder, which one such entry must not end.
    """
    try:
        return path.is_file()
    except OSError:
        return False


def changed_at(path: Path) -> float:
    """When a file or folder was changed last; 0 for what is gone or can't be looked at."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def free_bytes(path: Path) -> int:
    """Free space on the disk where `path` is or will be; 0 where that can't be told."""
    try:
        return shutil.disk_usage(_nearest(path)).free
    except OSError:
        return 0


def why_not_writable(folder: Path) -> str | None:
    """Why nothing can be written into a folder that is there or is to be made; None when it can be, or can't be told.

    Writes nothing itself, so it also tells why another process could not.
    """
    path = folder.expanduser().absolute()
    too_long = [part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME_BYTES]
    if too_long:
        return f"{path}: the name {too_long[0][:20]}... is longer than {_LONGEST_NAME_BYTES} bytes"
    try:
        nearest = _nearest(path)
        if not nearest.is_dir():
            return f"{nearest} is a file, not a folder"
        if not os.access(nearest, os.W_OK | os.X_OK):
            return f"{nearest} can't be written to: no permission, or a read-only disk"
        if nearest.parts[1:2] in (("proc",), ("sys",)) and shutil.disk_usage(nearest).total == 0:
            return f"{nearest} is the system's own: no files can be made there"
        if shutil.disk_usage(nearest).free == 0:
            return f"the disk of {nearest} is full"
    except OSError as error:
        return explain(error, path)
    return None


def _nearest(path: Path) -> Path:
    """The path itself, or what of it exists."""
    existing = path.expanduser().absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return existing
