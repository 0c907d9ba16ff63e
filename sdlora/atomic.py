"""Files and folders that appear whole or not at all, whatever ends the process or the machine meanwhile.

Everything is written beside its place under a hidden name, brought to the disk and moved there in one go, so a reader
sees the old content or the new, never half of it. Whoever writes a file that must not be lost comes here; all
functions raise OSError as the disk does, and then leave what was there before.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

import psutil

TEMPORARY_SUFFIX = ".sdlora-tmp"
"""Ends the hidden name of what is being written; a crash leaves such files behind, and nothing else reads them."""
_HIDDEN = re.compile(r"\.(\d+)-[0-9a-f]{8}" + re.escape(TEMPORARY_SUFFIX) + "$")
_NAME_BYTES = 120
"""Of the final name within the hidden one: together they must stay below the 255 that file systems allow."""
_FROM_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux' renameat2."""
_ABANDONED_SECONDS = 60.0
"""What was not written to for so long, by a process that isn't here, is no longer being written."""
# A second in all: readers and virus scanners let go of a file long before.
_WINDOWS_TRIES, _WINDOWS_WAIT_SECONDS = 20, 0.05


def write_bytes(
    path: Path, content: bytes, *, parents: bool = False, durable: bool = True, large: bool = False
) -> None:
    """Write a file; `parents`, `durable` and `large` as in `writing`."""
    with writing(path, parents=parents, durable=durable, large=large) as file:
        file.write(content)


def write_text(path: Path, text: str, *, parents: bool = False, durable: bool = True) -> None:
    """Write a UTF-8 file, line ends as they are in `text`.

    What no file can hold, the bytes of a name that isn't UTF-8, stands in it as Python shows it: a report is written
    whatever the files are called that it speaks of.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"), parents=parents, durable=durable)


def write_json(path: Path, value: object, *, indent: int | None = None, parents: bool = False) -> None:
    """Write a value as JSON in plain ASCII, which can hold even a file name that is no valid Unicode."""
    write_text(path, json.dumps(value, indent=indent), parents=parents)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its times, replacing `target`."""
    with writing(target) as file, source.open("rb") as content:
        shutil.copyfileobj(content, file)
        file.flush()
        shutil.copystat(source, file.name)


@contextmanager
def writing(path: Path, *, parents: bool = False, durable: bool = True, large: bool = False) -> Iterator[BinaryIO]:
    """A file to write into, put in place when the block ends well and thrown away when it raises.

    parents: make missing folders. durable=False spares the wait for the disk, for what is cheap to make again and
    checked when read. large: what earlier writes of this file left when they were killed is removed first; not for
    each of thousands of small files, as it looks through the folder. A link stays one: what it points to is replaced.
    A device or pipe (/dev/stdout) is written to directly, since it has no place to be moved to.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as device:
            yield device
        return
    target = _behind_link(path)
    if parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    if large:
        _remove_dead(leftovers(target))
    temporary = _beside(target)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        # A file that colleagues may write stays one they may write.
        with suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        _replace(temporary, target)
    except BaseException as error:  # also a Ctrl-C must not leave half a model lying around
        with suppress(OSError):
            temporary.unlink()
        _name_path(error, path)
        raise
    if durable:
        _flush_folder(target.parent)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, put in place when the block ends well and thrown away when it raises; replaces `path`.

    Where a folder can't be replaced in one go, the old one is away under a hidden name for a moment, but at no time is
    there half of one at `path`. What was left when an earlier one was killed is removed first. A link stays one.
    """
    path = _behind_link(path)
    _remove_dead(leftovers(path))
    temporary, old = _beside(path), _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        settle(temporary)
        if _exchanged(temporary, path):
            old = temporary
        else:
            if path.exists():
                _replace(path, old)
            _replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.replace(path)
        _name_path(error, path)
        raise
    _flush_folder(path.parent)
    if old.exists():
        _remove(old)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder on its disk, replacing a file that is at `target`."""
    _replace(source, target)
    _flush_folder(target.parent)


def discard(path: Path) -> None:
    """Delete a file or folder, which is gone from its place in one go: nobody takes what is left of it for whole."""
    hidden = _beside(path)
    _replace(path, hidden)
    _remove(hidden)


def create_file(path: Path, content: bytes, *, parents: bool = False) -> bool:
    """Write a new file; False, with nothing touched, when the name is taken, even by another process just now."""
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, it fails when there is something at `path`
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            _replace(temporary, path)
    except OSError as error:
        _name_path(error, path)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()
    _flush_folder(path.parent)
    return True


def create_folder(path: Path) -> Path:
    """Make a new folder called as `path` or, when that is taken, `name-2`, `name-3`, ...; returns the one made."""
    for name in numbered(path.name):
        with suppress(FileExistsError):
            path.with_name(name).mkdir()
            return path.with_name(name)
    raise AssertionError("numbers don't end")


def numbered(name: str) -> Iterator[str]:
    """The name itself, then `name-2`, `name-3` and so on: what to try in turn until one is free."""
    yield name
    for number in count(2):
        yield f"{name}-{number}"


def settle(folder: Path) -> None:
    """Bring all files in a folder to the disk, far faster than to wait for each as it is written."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _flush(path)
    _flush_folder(folder)


def leftovers(path: Path) -> list[Path]:
    """What interrupted writes of this file left beside it."""
    hidden = re.compile(re.escape(_hidden_start(path)) + r"(\.\d+-[0-9a-f]{8})?" + re.escape(TEMPORARY_SUFFIX))
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    return [other for other in siblings if hidden.fullmatch(other.name)]


def sweep(folder: Path, *, shared: bool = False) -> list[Path]:
    """Remove what processes that are gone left half written in a folder and below; returns what was removed.

    Only this machine's processes can be seen: hold a lock on the folder, or say that it is `shared` with others, whose
    files then count as left behind after a minute.
    """
    # The deepest first, so that a half-made folder is gone with what is half written in it.
    found = sorted(folder.rglob(f".*{TEMPORARY_SUFFIX}"), key=lambda path: len(path.parts), reverse=True)
    return _remove_dead(_abandoned(found) if shared else found)


def sweep_names(paths: Iterable[Path]) -> list[Path]:
    """As `sweep` of a shared folder, of those of these paths that are half-written files, for who has listed it."""
    return _remove_dead(_abandoned(path for path in paths if path.name.endswith(TEMPORARY_SUFFIX)))


def _abandoned(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        with suppress(OSError):  # its writer has just put it in place
            if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                yield path


def _remove_dead(hidden: Iterable[Path]) -> list[Path]:
    """Remove those of these hidden files and folders whose writers are gone; returns which."""
    dead = [path for path in hidden if (match := _HIDDEN.search(path.name)) and not psutil.pid_exists(int(match[1]))]
    for path in dead:
        with suppress(OSError):
            _remove(path)
    return dead


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _beside(path: Path) -> Path:
    # Process and chance in the name: two writers of one file must not write into the same one beside it.
    return path.with_name(f"{_hidden_start(path)}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _name_path(error: BaseException, path: Path) -> None:
    """A write that fails doesn't tell of which file, or by its hidden name; who reads the message wants its own."""
    if not isinstance(error, OSError) or not error.errno:
        return
    if error.filename is None or TEMPORARY_SUFFIX in str(error.filename):
        error.filename = str(path)


def _behind_link(path: Path) -> Path:
    """What a link leads to; anything else itself. Raises OSError for links in a circle."""
    try:
        return path.resolve() if path.is_symlink() else path
    except RuntimeError:  # as Python before 3.13 tells them
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def _hidden_start(path: Path) -> str:
    return "." + path.name.encode("utf-8", "ignore")[:_NAME_BYTES].decode("utf-8", "ignore")


def _replace(source: Path, target: Path) -> None:
    """Windows refuses while anyone (a reader, a virus scanner) has the target open, so there it is tried again."""
    tries = _WINDOWS_TRIES if os.name == "nt" else 1
    for last in range(tries - 1, -1, -1):
        try:
            source.replace(target)
            return
        except PermissionError:
            if not last:
                raise
            time.sleep(_WINDOWS_WAIT_SECONDS)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two things that are there have each other's name now, in one go; Linux alone can, on most disks."""
    if sys.platform != "linux":
        return False
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (os.fsencode(one.absolute()), os.fsencode(other.absolute()))
    return exchange is not None and exchange(_FROM_HERE, names[0], _FROM_HERE, names[1], _EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Windows wants a file open for writing to bring it to the disk; elsewhere it may well be read-only."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is. Windows opens no folders, some network disks don't sync them."""
    if os.name != "nt":
        with suppress(OSError):
            _flush(folder)
