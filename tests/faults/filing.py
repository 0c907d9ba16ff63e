"""Kinds of faults of what files are moved and rewritten by outside of a training: datasets, the trash, adapter files.

Each try does one piece of work in a process of its own in which the disk refuses at some change of a file, or which is
killed there. Then every file must be as it was before or as it is after the whole work, no picture or caption may be
gone, and the work done again must come to what it comes to undisturbed.
"""

from __future__ import annotations

import ctypes
import errno
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sdlora.__main__ import program
from sdlora.data.sets import edits, listing
from sdlora.data.sets.uploads import receive
from sdlora.errors import DataError
from sdlora.generation.restore.history import write_zip
from sdlora.trash import move_to_trash
from tests.faults.campaign import Ended, Lab, Try, forked, wait
from tests.support.emoji_adapters import random_adapter

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_HIDDEN = (".incoming", ".b.", ".all.")
Tree = dict[str, bytes]


@dataclass(frozen=True)
class Work:
    """Something that is done to a folder `there`, which `prepare` fills."""

    name: str
    prepare: Callable[[Lab, Path], None]
    do: Callable[[Path], object]
    again: Callable[[Path], object] | None = None
    """What takes it back, so that all is as before; by default the same is done once more and comes to its end."""


def filing(lab: Lab) -> Try:
    """A piece of work on files is killed, or its disk is full, at one change of a file; then it is done again."""
    work = lab.chance.choice(_WORKS)
    whole, known = lab.root / f"whole-{work.name}", f"calls of {work.name}"
    if known not in lab.expected:
        work.prepare(lab, whole / "there")
        shutil.copytree(whole / "there", whole / "before")
        told = whole / "calls.txt"
        _run(partial(_counted, work, whole / "there", told), whole / "out.txt")
        lab.expected[known] = told.read_text()
    runs, number = lab.new_runs(), lab.chance.choice([-int(signal.SIGKILL), -int(signal.SIGTERM), *_FULL])
    nth, there = lab.chance.randint(1, max(1, int(lab.expected[known]))), runs / "there"
    work.prepare(lab, there)
    ended = _run(partial(_armed, work, there, nth, number), runs / "out.txt")
    before, after, now = _tree(whole / "before"), _tree(whole / "there"), _tree(there)
    problems = [f"{name} is half or another" for name in now if now[name] not in (before.get(name), after.get(name))]
    kept = [name for name in before.keys() & after.keys() if before[name] == after[name]]
    problems += [f"{name} is gone" for name in kept if name not in now]
    wrong = bool(problems)
    again = _run(lambda: (work.again or work.do)(there), runs / "again.txt")
    expected = before if work.again else after
    if (left := _tree(there)) != expected:
        names = sorted(name for name in left.keys() | expected.keys() if left.get(name) != expected.get(name))
        problems.append(f"done again: {names} {again.output[-200:]}")
    # A killed process can't clear up; what it leaves is hidden, and swept by others.
    debris = [] if number < 0 else [path.name for path in there.rglob(".*") if path.name.startswith(_HIDDEN)]
    problems += [f"left behind: {debris}"] if debris else []
    traceback = ended.has_traceback or again.has_traceback
    what = "; ".join([*problems, *([ended.output[-400:]] if traceback else [])])
    return Try(not problems, 0, wrong, traceback, f"{work.name}, {number} at change {nth}: {what}" if what else "")


def _run(do: Callable[[], object], output: Path) -> Ended:
    return wait(forked(do, output), output)


def _counted(work: Work, there: Path, told: Path) -> None:
    library = ctypes.CDLL(None)
    library.fault_arm(str(there).encode(), ctypes.c_long(0), 0, 0)
    try:
        work.do(there)
    finally:
        told.write_text(str(library.fault_count()))


def _armed(work: Work, there: Path, nth: int, number: int) -> None:
    ctypes.CDLL(None).fault_arm(str(there).encode(), ctypes.c_long(nth), number, int(number > 0))
    work.do(there)


def _told(do: Callable[[], object]) -> None:
    """As the page and the command line do it: errors of ours, and the disk's, are told in words."""
    from sdlora.disk import explain
    from sdlora.errors import SdloraError

    try:
        do()
    except OSError as error:
        sys.exit(explain(error))
    except SdloraError as error:
        sys.exit(str(error))


def _tree(there: Path) -> Tree:
    """What a person sees: every file below, hidden ones left out."""
    return {
        path.relative_to(there).as_posix(): path.read_bytes()
        for path in there.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(there).parts)
    }


def _dataset(lab: Lab, there: Path) -> None:
    shutil.copytree(lab.images, there / "data")
    for number in range(0, 10, 2):
        (there / "data" / f"{number}.txt").write_text(f"shape {number}, shape {number}, on blue", encoding="utf-8")


def _upload(there: Path) -> None:
    """Eight files and a zip file, of which two are there already under other content."""
    uploads = there.parent / "uploads"  # where the disk is sound
    shutil.rmtree(uploads, ignore_errors=True)
    uploads.mkdir()
    pictures = sorted((there / "data").glob("?.png"))
    for number, picture in enumerate(pictures[:4]):
        (uploads / f"new-{number}.png").write_bytes(picture.read_bytes() + bytes([number]))
        (uploads / f"new-{number}.txt").write_text(f"new {number}", encoding="utf-8")
    (uploads / "5.txt").write_text("another caption", encoding="utf-8")
    with zipfile.ZipFile(uploads / "more.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"in/zip-{number}.png", pictures[5].read_bytes() + bytes([number]))
            archive.writestr(f"in/zip-{number}.txt", f"of the zip {number}")
    _told(lambda: receive(there / "data", sorted(uploads.iterdir())))


def _edit(there: Path) -> None:
    def edit() -> None:
        folder = there / "data"
        edits.make_edit(folder, edits.plan_edit(listing.read(folder), edits.Edit("front", "zed")))

    _told(edit)


def _undo(there: Path) -> None:
    """The edit above taken back, however far it came."""
    from sdlora.data.fix.changes import undo

    try:
        undo(there / "data")
    except DataError as error:
        if "no changes to undo" not in str(error):
            raise


def _edited(lab: Lab, there: Path) -> None:
    _dataset(lab, there)
    _edit(there)


def _delete(there: Path) -> None:
    _told(lambda: move_to_trash([there / "data"], there / ".trash") if (there / "data").exists() else None)


def _adapter(lab: Lab, there: Path) -> None:
    once = lab.root / "adapter.safetensors"  # two of the same tensors may differ in the order of their metadata
    if not once.is_file():
        random_adapter(once, 1, rank=2)
    there.mkdir(parents=True)
    shutil.copy(once, there / "a.safetensors")


def _command(line: str) -> Callable[[Path], None]:
    def do(there: Path) -> None:
        sys.argv = ["sdlora", *line.format(there=there).split()]
        program()

    return do


def _zip(there: Path) -> None:
    _told(lambda: write_zip(sorted((there / "data").glob("*.png")), there / "all.zip"))


_WORKS = (
    Work("upload", _dataset, _upload),
    Work("edit", _dataset, _edit),
    Work("edit and undo", _dataset, _edit, _undo),
    Work("undo", _edited, lambda there: _told(lambda: _undo(there))),
    Work("delete", _dataset, _delete),
    Work("zip", _dataset, _zip),
    Work("fix", _dataset, _command("dataset fix {there}/data --apply --rules all")),
    Work(
        "convert", _adapter, _command("convert {there}/a.safetensors --to diffusers -o {there}/b.safetensors --force")
    ),
    Work("mix", _adapter, _command("mix {there}/a.safetensors {there}/a.safetensors -o {there}/b.safetensors --force")),
)

KINDS = (filing,)
