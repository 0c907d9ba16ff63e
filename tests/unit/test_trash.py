"""Into the trash and back, also from disk to disk, and deleting for good what lies there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from sdlora import trash


def test_two_who_empty_a_folder_at_once_don_t_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("words")
    remove = shutil.rmtree

    def half_of_it_is_gone_already(path: Path) -> None:
        if (path / "checkpoints").exists():
            remove(path / "checkpoints")
            (tmp_path / "notes.txt").unlink(missing_ok=True)
            raise FileNotFoundError(path / "checkpoints")
        remove(path)

    monkeypatch.setattr(trash.shutil, "rmtree", half_of_it_is_gone_already)
    assert trash.empty_folder(tmp_path).files == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be renamed from its place to the trash or back."""

    def rename(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))

    monkeypatch.setattr(trash.atomic, "move", rename)


def a_dataset(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(str(number))
    (folder / "link").symlink_to("nowhere")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("other_disk")
def test_to_a_trash_on_another_disk_and_back_goes_all_of_it(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path / "fox")
    deleted = trash.move_to_trash([dataset], tmp_path / "trash")
    assert names(tmp_path) == ["trash"]
    assert names(deleted[0].trashed) == ["0.txt", "1.txt", "2.txt", "link"]
    assert trash.put_back(deleted) == [dataset]
    assert names(dataset) == ["0.txt", "1.txt", "2.txt", "link"]
    assert names(tmp_path / "trash") == []


@pytest.mark.usefixtures("other_disk")
def test_a_full_disk_of_the_trash_leaves_all_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = a_dataset(tmp_path / "fox")

    def copy_one(source: Path, target: Path, **_: object) -> None:
        shutil.copy(source / "0.txt", target)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(trash.shutil, "copytree", copy_one)
    with pytest.raises(OSError, match="No space left"):
        trash.move_to_trash([dataset], tmp_path / "trash")
    assert names(dataset) == ["0.txt", "1.txt", "2.txt", "link"]
    assert names(tmp_path / "trash") == []


@pytest.mark.usefixtures("other_disk")
def test_what_is_half_deleted_is_not_shown_as_half_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = a_dataset(tmp_path / "fox")

    def remove_one(folder: Path, **_: object) -> None:
        (folder / "0.txt").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", remove_one)
    with pytest.raises(KeyboardInterrupt):
        trash.move_to_trash([dataset], tmp_path / "trash")
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["trash"]
    assert len(names(next((tmp_path / "trash").iterdir()))) == 4
