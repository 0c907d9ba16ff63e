"""Deleting for good what lies in the trash."""

from __future__ import annotations

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
