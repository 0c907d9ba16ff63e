"""Changes to the files of a dataset, each logged with the original kept, so that `undo` gives every byte back.

    <dataset>/.sdlora-trash/<time>/log.jsonl    one line a change, written before the change is made
    <dataset>/.sdlora-trash/<time>/0001         the file as it was, for a change to an existing file

The folder is hidden, so scans pass it by.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from sdlora import atomic, disk
from sdlora.data.scan_problems import changeable
from sdlora.disk import changed_at
from sdlora.errors import DataError
from sdlora.text_files import encoded_like, read_file
from sdlora.words import as_typed

TRASH = ".sdlora-trash"
_ABANDONED_SECONDS = 60.0
_NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d)-(\d{3})")
LOG = "log.jsonl"
"""Name of a change_set's log: one line of JSON a change, with `path` and `rules`."""


@dataclass(frozen=True)
class Change:
    """One file to be written or removed. `content` gives the new bytes when asked; None removes the file."""

    rules: tuple[str, ...]
    path: Path
    content: Callable[[], bytes] | None
    summary: str
    """What the change does, for the preview."""
    planned_on: str | None = ""
    """Hash of the file that it was planned on, None for none; empty where the change doesn't hang on what is there."""


def with_text(rules: tuple[str, ...], path: Path, text: str) -> Change:
    """The change that gives a caption file this text; one that is there keeps its encoding and mark."""
    summary = f"caption: {' '.join(text.split())}"
    content = partial(_encoded_as_before, text, path)
    planned_on: str | None = ""
    with suppress(OSError):  # told when the change is made
        planned_on = hash_of(path)
    return Change(rules, path, content, summary, planned_on)


def _encoded_as_before(text: str, path: Path) -> bytes:
    return encoded_like(text, path.read_bytes() if path.is_file() else b"")


@dataclass(frozen=True)
class Undone:
    """The files that an undo put back (or took away again), and which changes it took back."""

    files: tuple[Path, ...]
    change_set: str
    """The time at which the changes had been made."""


@dataclass(frozen=True)
class Entry:
    """A line of the log: a file's hash before and after (None: absent) and the original's name in the trash."""

    path: str
    before: str | None
    after: str | None
    kept: str | None
    rules: tuple[str, ...]


def apply(folder: Path, changes: Sequence[Change]) -> Path | None:
    """Make the changes, in order; returns the folder with the originals, None when there was nothing to do.

    Each is logged and its original kept before the file is touched; files are replaced in one go. Interrupted between
    two changes, the first are done and can be undone. Raises DataError for a file outside the folder or one that
    can't be written.
    """
    if not changes:
        return None
    folder = folder.expanduser().resolve()
    for change in changes:
        _target(change.path, folder)
    change_set = ChangeSet.begin(folder)
    for number, change in enumerate(changes):
        try:
            change_set.make(change)
        except (OSError, DataError) as error:
            why = disk.explain(error, change.path) if isinstance(error, OSError) else error
            if change_set.is_empty:
                _remove_change_set(folder, change_set.path)
            undo_them = f": `{as_typed('sdlora', 'dataset', 'undo', folder)}` takes them back" if number else ""
            raise DataError(f"{why}. {number} of {len(changes)} changes are done{undo_them}") from error
    return change_set.path


class ChangeSet:
    """Changes that are made one at a time and undone together; one left behind by a crash can be continued."""

    def __init__(self, folder: Path, path: Path) -> None:
        """Go on with the change_set whose log and originals are in `path`, below the dataset `folder` (resolved)."""
        self.folder, self.path = folder, path
        _sweep(folder)
        fix_last_line(path / LOG)
        self._touched: set[Path] = set()
        self._made = sum(1 for _ in logged(path / LOG)) if (path / LOG).is_file() else 0

    @classmethod
    def begin(cls, folder: Path) -> ChangeSet:
        """A change_set without changes for a dataset (resolved). Raises DataError when its trash can't be written."""
        try:
            return cls(folder, _new_change_set(folder))
        except OSError as error:
            raise DataError(disk.explain(error, folder / TRASH)) from error

    @property
    def is_empty(self) -> bool:
        """Whether no file was changed yet: there is no log then, and nothing that undo could take back."""
        return not (self.path / LOG).is_file()

    def make(self, change: Change) -> None:
        """Make one change, logged before the file is touched. Raises DataError as `apply` does, and OSError."""
        path = _target(change.path, self.folder)
        if change.planned_on != "" and path not in self._touched and hash_of(path) != change.planned_on:
            raise DataError(f"{path} has changed since this was planned: ask for it again")
        self._touched.add(path)
        self._made += 1
        _make(change, path, self.folder, self.path, f"{self._made:06d}")


def batch_folders(folder: Path) -> list[Path]:
    """The folders of all batches of a dataset (resolved), oldest first."""
    return sorted(path for path in (folder / TRASH).glob("*") if path.is_dir())


def undo(folder: Path) -> Undone:
    """Take back the newest changes of a dataset, byte for byte; call again for those before.

    Safe to interrupt and repeat. Raises DataError when there is nothing to undo, and, before touching anything, when
    files have been changed since.
    """
    folder = changeable(folder)
    batches = [path for path in batch_folders(folder) if (path / LOG).is_file()]
    if not batches:
        raise DataError(f"{folder} has no changes to undo (no {TRASH} folder with a log in it).")
    change_set = batches[-1]
    entries = list(logged(change_set / LOG))
    # Before anything is touched: half an undo would be worse than none.
    _refuse_later_changes(folder, entries)
    for entry in reversed(entries):
        _restore(folder, change_set, entry)
    # The log first: what is left of a folder without one is nothing that could be undone a second time.
    (change_set / LOG).unlink()
    _remove_change_set(folder, change_set)
    return Undone(tuple(folder / entry.path for entry in entries), change_set.name)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left: half-written files, and copies for changes that never got as far as a log."""
    atomic.sweep(folder, shared=True)
    for left in batch_folders(folder):
        if not any(left.glob("*.jsonl")) and changed_at(left) < time.time() - _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _remove_change_set(folder: Path, change_set: Path) -> None:
    shutil.rmtree(change_set)
    with suppress(OSError):  # not empty: older changes are still in it
        (folder / TRASH).rmdir()


def _new_change_set(folder: Path) -> Path:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%S")
    # `undo` takes the last by name: after a clock that was set back the new one must still come behind those before.
    names = (_NAME.fullmatch(path.name) for path in batch_folders(folder))
    newest, last = max(((match[1], int(match[2])) for match in names if match), default=("", 0))
    first = 1 if newest < now else last + 1
    now = max(now, newest)
    for number in range(first, 1000):
        change_set = folder / TRASH / f"{now}-{number:03d}"
        with suppress(FileExistsError):
            change_set.mkdir(parents=True)
            return change_set
    raise DataError(f"{folder / TRASH} has too many changes of this second: try again.")


def _target(path: Path, folder: Path) -> Path:
    # Resolved up to its folder alone: of a link we want to see that it is one.
    target = path.parent.resolve() / path.name
    if not target.is_relative_to(folder) or target.is_symlink():
        raise DataError(f"{path} is a link or lies outside {folder}, so nothing was changed: go where it really lies.")
    return target


def _make(change: Change, path: Path, folder: Path, change_set: Path, number: str) -> None:
    before = hash_of(path)
    content = change.content() if change.content else None
    after = None if content is None else hashlib.sha256(content).hexdigest()
    if before == after:
        return
    # The original first, then the log, then the change: whatever is interrupted, undo finds what it needs.
    if before is not None:
        atomic.copy_file(path, change_set / number)
    name = path.relative_to(folder).as_posix()
    entry = Entry(name, before, after, None if before is None else number, change.rules)
    append_line(change_set / LOG, asdict(entry))
    if content is None:
        path.unlink()
    else:
        atomic.write_bytes(path, content)


def _restore(folder: Path, change_set: Path, entry: Entry) -> None:
    path = folder / entry.path
    for rest in atomic.leftovers(path):
        rest.unlink(missing_ok=True)
    if hash_of(path) == entry.before:
        return
    if entry.kept is None:
        path.unlink(missing_ok=True)
    else:
        atomic.copy_file(change_set / entry.kept, path)


def _refuse_later_changes(folder: Path, entries: Sequence[Entry]) -> None:
    """Raise DataError for files that are neither as before the changes nor as after them."""
    states: dict[str, set[str | None]] = {}
    for entry in entries:
        states.setdefault(entry.path, set()).update((entry.before, entry.after))
    changed = [name for name, known in states.items() if hash_of(folder / name) not in known]
    if changed:
        raise DataError(
            f"{len(changed)} of {len(states)} files have been changed since, and undoing would lose that: "
            f"{', '.join(changed)}. Nothing was undone; move them away first."
        )


def hash_of(path: Path) -> str | None:
    """SHA-256 of a file in hex, None when there is none."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except FileNotFoundError:
        return None


def append_line(path: Path, values: object) -> None:
    """Add one line of JSON to a file; it is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
        file.flush()
        os.fsync(file.fileno())


def fix_last_line(path: Path) -> None:
    """Cut off what a crash left of a line, so that lines can be added again."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


def logged(log: Path) -> Iterator[Entry]:
    """The log's entries; a last line cut off by a crash belongs to a change that was not made."""
    for line in log.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, TypeError):
            values = json.loads(line)
            yield Entry(**{**values, "rules": tuple(values["rules"])})
