"""Whole or not at all: files and folders under interruption."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sdlora import atomic

_ROOT = Path(__file__).parents[2]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a.bin", b"new")
    atomic.write_text(tmp_path / "a.txt", "grün\n")
    atomic.write_json(tmp_path / "deep" / "er" / "a.json", {"name": "雪\udcff"}, parents=True)

    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert (tmp_path / "a.txt").read_bytes() == "grün\n".encode()
    assert json.loads((tmp_path / "deep" / "er" / "a.json").read_text("ascii")) == {"name": "雪\udcff"}
    assert _names(tmp_path) == {"a.bin", "a.txt", "deep"}


def test_a_missing_folder_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.write_text(tmp_path / "gone" / "a.txt", "x")

    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_midway() -> None:
        with atomic.writing(path) as file:
            file.write(b"half of the n")
            file.flush()
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        fail_midway()

    assert path.read_text() == "old"
    assert _names(tmp_path) == {"a.txt"}


@pytest.mark.slow
def test_a_killed_write_leaves_the_old_file_and_a_rest_that_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = (
        "import os; from pathlib import Path; from sdlora import atomic\n"
        f"with atomic.writing(Path({str(path)!r})) as file:\n    file.write(b'half'); file.flush(); os._exit(9)"
    )

    subprocess.run([sys.executable, "-c", program], cwd=_ROOT, check=False)

    assert path.read_text() == "old"
    (rest,) = atomic.leftovers(path)
    assert rest.name.startswith(".a.txt.")
    assert atomic.leftovers(tmp_path / "a") == []


def test_what_a_killed_write_of_a_large_file_or_folder_left_goes_with_the_next_write(tmp_path: Path) -> None:
    living, dead = os.getpid(), 2**22 + 1  # above the highest number that Linux gives
    rests = {
        (name, number): tmp_path / f".{name}.{number}-0123abcd{atomic.TEMPORARY_SUFFIX}"
        for name in ("mix.safetensors", "merged", "other")
        for number in (living, dead)
    }
    for (name, _), rest in rests.items():
        if name == "merged":
            rest.mkdir()
            (rest / "half").write_bytes(b"half")
        else:
            rest.write_bytes(b"half")
    atomic.write_bytes(tmp_path / "mix.safetensors", b"whole", large=True)
    with atomic.making_folder(tmp_path / "merged"):
        pass
    gone = {key for key, rest in rests.items() if not rest.exists()}
    assert gone == {("mix.safetensors", dead), ("merged", dead)}


def test_a_name_as_long_as_the_disk_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ж" * 125 + ".txt")

    atomic.write_text(path, "x")

    assert path.read_text() == "x"


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    link = tmp_path / "a.txt"
    link.symlink_to(tmp_path / "real" / "a.txt")

    atomic.write_text(link, "new")

    assert link.is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="pipes by name are POSIX's")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()

    atomic.write_text(pipe, "through")
    reader.join(10)

    assert read == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such modes")
def test_a_replaced_file_keeps_who_may_write_it(tmp_path: Path) -> None:
    path = tmp_path / "shared.txt"
    path.write_text("old")
    path.chmod(0o664)

    atomic.write_text(path, "new")

    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_a_copy_has_the_times_of_the_original(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    os.utime(tmp_path / "a", ns=(10**18, 10**18))

    atomic.copy_file(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "b").read_bytes() == b"x" * 100_000
    assert (tmp_path / "b").stat().st_mtime_ns == 10**18


def test_a_folder_appears_when_it_is_full_and_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")

    with atomic.making_folder(tmp_path / "model") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "new.txt").write_text("new")
        (folder / "sub" / "new.txt").chmod(0o444)
        assert (tmp_path / "model" / "old.txt").read_text() == "old"

    assert [path.name for path in (tmp_path / "model").rglob("*.txt")] == ["new.txt"]
    assert _names(tmp_path) == {"model"}


def test_a_folder_that_could_not_be_filled_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")

    def fail_midway() -> None:
        with atomic.making_folder(tmp_path / "model") as folder:
            (folder / "half").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_midway()

    assert _names(tmp_path) == {"model"}
    assert _names(tmp_path / "model") == {"old.txt"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems replace no folder in one go")
def test_a_folder_is_replaced_in_one_go_so_that_a_kill_never_finds_it_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(atomic, "_replace", lambda source, target: pytest.fail("moved away before the other came"))
    with atomic.making_folder(tmp_path / "model") as folder:
        (folder / "new.txt").touch()
    assert _names(tmp_path) == {"model"}
    assert _names(tmp_path / "model") == {"new.txt"}


def test_a_link_to_a_folder_stays_one_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    with atomic.making_folder(tmp_path / "model") as folder:
        (folder / "new.txt").touch()
    assert (tmp_path / "model").is_symlink()
    assert _names(tmp_path / "disk" / "model") == {"new.txt"}


def test_a_folder_that_could_not_be_moved_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")
    replace = atomic._replace

    def refuse_the_new(source: Path, target: Path) -> None:
        if target == tmp_path / "model":
            raise PermissionError("in use")
        replace(source, target)

    monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)  # a system that can't
    monkeypatch.setattr(atomic, "_replace", refuse_the_new)
    with pytest.raises(PermissionError), atomic.making_folder(tmp_path / "model") as folder:
        (folder / "new.txt").touch()

    assert _names(tmp_path) == {"model"}
    assert _names(tmp_path / "model") == {"old.txt"}


def test_many_writers_of_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    contents = [bytes([letter]) * 50_000 for letter in b"abcdefgh"]
    threads = [threading.Thread(target=atomic.write_bytes, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (tmp_path / "a").read_bytes() in contents
    assert _names(tmp_path) == {"a"}


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "a disk without hard links"])
def test_a_new_file_never_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "new" / "a.png"

    assert atomic.create_file(path, b"first", parents=True)
    assert not atomic.create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert _names(path.parent) == {"a.png"}


def test_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    made = [atomic.create_folder(tmp_path / "run-1.5").name for _ in range(3)]

    assert made == ["run-1.5", "run-1.5-2", "run-1.5-3"]


def test_on_windows_a_file_that_is_being_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("new")
    replace, refusals = Path.replace, [PermissionError("in use"), PermissionError("in use")]

    def refuse_twice(source: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse_twice)
    with pytest.raises(PermissionError):
        atomic.move(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(atomic, "_flush_folder", lambda folder: None)  # pathlib can't be told that this is Windows
    atomic._replace(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "b").read_text() == "new"
