"""Kinds of faults of what files are moved and rewritten by outside of a training: datasets, the trash, adapter files.

Each try does one piece of work in a process of its own in which the disk refuses at some change of a file, or which is
killed or interrupted there or at any moment. Then every file must be as it was before or as it is after the whole work,
no picture or caption may be gone, a refusal must be told in words, and the work done again must come to what it comes
to undisturbed, with nothing half written left.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sdlora.__main__ import program
from sdlora.atomic import TEMPORARY_SUFFIX
from sdlora.constants import INTERRUPTED
from sdlora.data.sets import edits, listing
from sdlora.data.sets.uploads import receive
from sdlora.errors import DataError
from sdlora.generation.restore.history import write_zip
from sdlora.trash import move_to_trash
from tests.faults.campaign import Ended, Lab, Try, forked, wait
from tests.support.emoji_adapters import random_adapter

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_WORDS = {
    errno.ENOSPC: r"disk is full, [\d.]+ MiB are free",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
    errno.EIO: "input/output error",
}
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_HIDDEN = (".incoming",)
_LONG_AGO_SECONDS = 3600
Tree = dict[str, bytes]


def tree(there: Path) -> Tree:
    """What a person sees: every file below, hidden ones left out."""
    return {
        path.relative_to(there).as_posix(): path.read_bytes()
        for path in there.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(there).parts)
    }


@dataclass(frozen=True)
class Work:
    """Something that is done to a folder `there`, which `prepare` fills."""

    name: str
    prepare: Callable[[Lab, Path], None]
    do: Callable[[Path], object]
    again: Callable[[Path], object] | None = None
    """What takes it back, so that all is as before; by default the same is done once more and comes to its end."""
    tree: Callable[[Path], Tree] = tree
    """What counts of what lies there: times and the like may differ."""
    at_once: bool = False
    """Whether all of it is put in place in one go: before that nothing is there, or all as it was."""
    done: str = "exists already"
    """What it says when it is done again after it came to its end."""


def filing(lab: Lab) -> Try:
    """A piece of work on files is killed, or its disk is full, at one change of a file; then it is done again."""
    return disturbed(lab, lab.chance.choice(_WORKS))


def disturbed(lab: Lab, work: Work) -> Try:
    """What became of a piece of work that a signal or the disk disturbed."""
    whole, calls, seconds = (
        lab.root / f"whole-{work.name.replace(chr(32), chr(45))}",
        f"calls of {work.name}",
        f"seconds of {work.name}",
    )
    if calls not in lab.expected:
        work.prepare(lab, whole / "there")
        shutil.copytree(whole / "there", whole / "before")
        told, began = whole / "calls.txt", time.monotonic()
        ended = _run(partial(_counted, work, whole / "there", told), whole / "out.txt")
        assert ended.code == 0, ended.output
        lab.expected |= {calls: told.read_text(), seconds: str(time.monotonic() - began)}
    runs, number = lab.new_runs(), lab.chance.choice([*(-int(one) for one in _SIGNALS), *_FULL])
    nth, there = lab.chance.randint(1, max(1, int(lab.expected[calls]))), runs / "there"
    work.prepare(lab, there)
    if number < 0 and lab.chance.random() < 0.4:
        after = lab.chance.uniform(0, float(lab.expected[seconds]))
        ended, when = _signalled(work, there, after, -number, runs / "out.txt"), f"{after:.2f} s"
    else:
        ended, when = _run(partial(_armed, work, there, nth, number), runs / "out.txt"), f"change {nth}"
    before, after_it, now = work.tree(whole / "before"), work.tree(whole / "there"), work.tree(there)
    problems = _halves(work, before, after_it, now)
    wrong = bool(problems)
    if now != after_it:
        problems += _told_badly(ended, number)
    debris = [path.name for path in there.rglob(".*") if path.name.startswith(_HIDDEN) or is_temporary(path)]
    if number > 0:  # a killed process can't clear up, nor always an interrupted one
        problems += [f"left behind: {debris}"] if debris else []
    for path in there.rglob(f".*{TEMPORARY_SUFFIX}"):
        os.utime(path, (time.time() - _LONG_AGO_SECONDS,) * 2)
    if when.endswith(" s") and now == after_it:  # it was done before the signal came
        return Try(not problems, 0, wrong, ended.has_traceback, "; ".join(problems))
    again = _run(lambda: (work.again or work.do)(there), runs / "again.txt")
    expected = before if work.again else after_it
    if (left := work.tree(there)) != expected:
        names = sorted(name for name in left.keys() | expected.keys() if left.get(name) != expected.get(name))
        problems.append(f"done again: {names} {again.output[-200:]}")
    elif again.code and not (now == after_it and work.done in again.output):
        problems.append(f"done again: it says {again.output[-200:]}")
    debris = [path.name for path in there.rglob(f".*{TEMPORARY_SUFFIX}")]
    problems += [f"never swept: {debris}"] if debris and now != after_it else []
    traceback = ended.has_traceback or again.has_traceback
    what = "; ".join([*problems, *([ended.output[-400:]] if traceback else [])])
    return Try(not problems, 0, wrong, traceback, f"{work.name}, {number} at {when}: {what}" if what else "")


def _halves(work: Work, before: Tree, after: Tree, now: Tree) -> list[str]:
    """Files that are neither as before nor as after the work, and those that are gone."""
    if work.at_once:
        return [] if now in (before, after) else [f"half of it: {sorted(now)}, before {sorted(before)}"]
    problems = [f"{name} is half or another" for name in now if now[name] not in (before.get(name), after.get(name))]
    kept = [name for name in before.keys() & after.keys() if name not in now]
    return [*problems, *(f"{name} is gone" for name in kept)]


def _told_badly(ended: Ended, number: int) -> list[str]:
    """What is wrong with how a work that didn't come to its end ended."""
    if number > 0:
        said = [] if re.search(_WORDS[number], " ".join(ended.output.split())) else [f"not told: {ended.output[-300:]}"]
        return [*said, *([] if ended.code == 2 else [f"exit code {ended.code}"])]
    if number == -int(signal.SIGINT) and ended.code != INTERRUPTED:
        return [f"exit code {ended.code}: {ended.output[-300:]}"]
    return []


def is_temporary(path: Path) -> bool:
    """Whether something is a half-written file, or the folder of one."""
    return path.name.endswith(TEMPORARY_SUFFIX)


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


def _signalled(work: Work, there: Path, seconds: float, number: int, output: Path) -> Ended:
    process_id = forked(partial(work.do, there), output)
    time.sleep(seconds)
    os.kill(process_id, number)
    return wait(process_id, output)


def _told(do: Callable[[], object]) -> None:
    """As the page and the command line do it: errors of ours, and the disk's, are told in words."""
    from sdlora.disk import explain
    from sdlora.errors import SdloraError

    try:
        do()
    except OSError as error:
        print(explain(error))
        sys.exit(2)
    except SdloraError as error:
        print(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def dataset(lab: Lab, there: Path) -> None:
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
    dataset(lab, there)
    _edit(there)


def _delete(there: Path) -> None:
    _told(lambda: move_to_trash([there / "data"], there / ".trash") if (there / "data").exists() else None)


def adapter(lab: Lab, there: Path) -> None:
    once = lab.root / "adapter.safetensors"  # two of the same tensors may differ in the order of their metadata
    if not once.is_file():
        random_adapter(once, 1, rank=2)
    there.mkdir(parents=True)
    shutil.copy(once, there / "a.safetensors")


def command(line: str) -> Callable[[Path], None]:
    def do(there: Path) -> None:
        sys.argv = ["sdlora", *line.format(there=there).split()]
        program()

    return do


def _zip(there: Path) -> None:
    _told(lambda: write_zip(sorted((there / "data").glob("*.png")), there / "all.zip"))


_WORKS = (
    Work("upload", dataset, _upload),
    Work("edit", dataset, _edit),
    Work("edit and undo", dataset, _edit, _undo),
    Work("undo", _edited, lambda there: _told(lambda: _undo(there))),
    Work("delete", dataset, _delete),
    Work("zip", dataset, _zip),
    Work("fix", dataset, command("dataset fix {there}/data --apply --rules all")),
    Work("convert", adapter, command("convert {there}/a.safetensors --to diffusers -o {there}/b.safetensors --force")),
    Work("mix", adapter, command("mix {there}/a.safetensors {there}/a.safetensors -o {there}/b.safetensors --force")),
)

KINDS = (filing,)
