"""What was found out about files is asked once, until they change."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.file_memory import FileMemory


@pytest.fixture
def old_file(tmp_path: Path, settled: None) -> Callable[..., Path]:
    def make(name: str, content: str = "x", time: float = 1e9) -> Path:
        path = tmp_path / name
        path.write_text(content)
        os.utime(path, (time, time))
        return path

    return make


class Counted:
    """Gives a fact and counts how often it was asked."""

    calls = 0

    def __call__(self) -> dict[str, int]:
        self.calls += 1
        return {"calls": self.calls}


def test_a_file_is_looked_into_once_until_it_changes(tmp_path: Path, old_file: Callable[..., Path]) -> None:
    path, store, find_out = old_file("a"), tmp_path / "cache" / "m.json", Counted()
    for _ in range(3):
        memory = FileMemory(store, 1)
        assert memory.get(path, find_out) == {"calls": 1}
        memory.save()

    for time in (1e9, 1e9 + 1):
        memory, before = FileMemory(store, 1), find_out.calls
        memory.get(old_file("a", "longer", time), find_out)
        memory.save()
        assert find_out.calls == before + 1
    memory = FileMemory(store, 1)
    assert memory.get(path, find_out, also=7.0) == {"calls": 4}


def test_a_file_changed_just_now_is_not_trusted(tmp_path: Path) -> None:
    path, store, find_out = tmp_path / "a", tmp_path / "m.json", Counted()
    path.write_text("x")
    for _ in range(2):
        memory = FileMemory(store, 1)
        memory.get(path, find_out)
        memory.save()

    assert find_out.calls == 2


def replaced_in_place(path: Path) -> None:
    path.write_text("y")


def exchanged(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("y")
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    path.rename(path.with_name("gone"))
    other.rename(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no time of change that nobody can set")
@pytest.mark.parametrize("change", [replaced_in_place, exchanged])
def test_another_content_is_noticed_though_size_and_time_are_the_same(
    tmp_path: Path, old_file: Callable[..., Path], change: Callable[[Path], None]
) -> None:
    path, memory, find_out = old_file("a"), FileMemory(None, 1), Counted()
    memory.get(path, find_out)
    memory.save()
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert memory.get(path, find_out) == {"calls": 2}


def test_entries_that_nobody_asks_for_go_unless_they_are_kept(tmp_path: Path, old_file: Callable[..., Path]) -> None:
    first, second, store, find_out = old_file("a"), old_file("b"), tmp_path / "m.json", Counted()
    for path, keep in ((first, False), (second, True), (second, False)):
        memory = FileMemory(store, 1)
        memory.get(path, find_out)
        memory.save(keep_others=keep)
        assert (str(first) in store.read_text()) is (path is first or keep)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1, "files": 3}', '{"version": 1, "files": {"a": 5}}', "7"])
def test_a_damaged_memory_remembers_nothing(tmp_path: Path, old_file: Callable[..., Path], content: str) -> None:
    store, find_out = tmp_path / "m.json", Counted()
    store.write_text(content)

    assert FileMemory(store, 1).get(old_file("a"), find_out) == {"calls": 1}


def test_without_a_store_and_with_one_that_cannot_be_written_all_goes_on(
    tmp_path: Path, old_file: Callable[..., Path]
) -> None:
    (tmp_path / "file").touch()
    for store in (None, tmp_path / "file" / "m.json"):
        memory = FileMemory(store, 1)
        memory.get(old_file("a"), Counted())
        memory.save()
