"""What killed commands left half written is swept by the next one, and what others are writing is not."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sdlora import atomic
from sdlora.adapters.files.container import write_atomically
from sdlora.config.captioning import CaptioningConfig
from sdlora.config.generate import GenerateConfig
from sdlora.data.cache import Cache
from sdlora.data.captioning.run import caption_folder
from sdlora.data.fix import changes
from sdlora.data.fix.changes import TRASH, Change, apply, undo, with_text
from sdlora.data.masking import make_masks, mask_from_alpha
from sdlora.data.packed.unpack import MARKER, unpack
from sdlora.data.sets.uploads import receive
from sdlora.errors import DataError, SdloraError
from sdlora.generation.generated import GeneratedImage, GenerationFacts
from sdlora.generation.grid.run import _new_folder
from sdlora.generation.restore.image_files import save_image
from tests.support.dataset_pictures import picture, save_captioned
from tests.support.tiny_captioners import numbered
from tests.unit.test_packed_datasets import shard, write_tar

_GONE = 2**22 + 1
"""Above the highest process id that Linux gives out."""


def left(path: Path, process_id: int = _GONE, seconds_ago: float = 3600) -> Path:
    """A half-written file of a process, last written to so long ago."""
    hidden = path.with_name(f".{path.name}.{process_id}-0123abcd{atomic.TEMPORARY_SUFFIX}")
    hidden.parent.mkdir(parents=True, exist_ok=True)
    hidden.write_bytes(b"half")
    os.utime(hidden, (time.time() - seconds_ago,) * 2)
    return hidden


def captioned(folder: Path) -> Path:
    for number in range(2):
        save_captioned(picture(number), folder / f"{number}.png", f"old {number}")
    return folder


def _generate(folder: Path) -> None:
    facts = GenerationFacts("none", None, {}, "sd1", "epsilon", 0.0)
    save_image(GeneratedImage(Image.new("RGB", (8, 8)), GenerateConfig(prompt="a cat", seed=7), facts), folder)


def _edit(folder: Path) -> None:
    apply(captioned(folder), [with_text(("edit",), folder / "0.txt", "new 0")])


def _upload(folder: Path) -> None:
    upload = folder.parent / "9.txt"
    upload.write_text("a caption", encoding="utf-8")
    receive(captioned(folder), [upload])


def _unpack_the_rest(folder: Path) -> None:
    packed = write_tar(folder.parent / "a.tar", shard(0))
    marker = {"files": {str(packed): packed.stat().st_size}, "caption_column": None, "done": []}
    atomic.write_json(folder / MARKER, marker)
    unpack(packed, folder)


@pytest.mark.parametrize("command", [_generate, _edit, _upload, _unpack_the_rest])
def test_the_next_command_sweeps_what_a_killed_one_left_and_nothing_that_is_being_written(
    tmp_path: Path, command: Callable[[Path], None]
) -> None:
    folder = tmp_path / "there"
    killed = left(folder / "00003-7.png")
    living = left(folder / "00004-7.png", os.getpid())
    elsewhere = left(folder / "00005-7.png", seconds_ago=2)
    command(folder)
    assert not killed.exists()
    assert living.exists()
    assert elsewhere.exists()


def _cache(folder: Path) -> None:
    Cache(folder).put("ab" * 32, {"latents": torch.zeros(2)})


def _adapter(folder: Path) -> None:
    write_atomically(folder / "a.safetensors", b"an adapter")


def _mask(folder: Path) -> None:
    save_captioned(Image.new("RGBA", (64, 64), (9, 9, 9, 9)), folder / "0.png", "a hole")
    make_masks(folder, mask_from_alpha)


def _caption(folder: Path) -> None:
    caption_folder(captioned(folder), CaptioningConfig(existing="append"), captioner=numbered)


@pytest.mark.parametrize("command", [_generate, _edit, _cache, _adapter, _mask, _caption])
def test_who_writes_to_a_full_disk_is_told_which_and_how_much_is_free_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[Path], None]
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "_replace", refuse)
    monkeypatch.setattr(os, "link", refuse)
    folder = tmp_path / "there"
    words = rf"{folder}.*can't be written: its disk is full, [\d.]+ MiB are free"
    with pytest.raises(SdloraError, match=words) as told:
        command(folder)
    assert atomic.TEMPORARY_SUFFIX not in str(told.value)
    assert not list(folder.rglob(f".*{atomic.TEMPORARY_SUFFIX}"))


def test_copies_for_changes_that_a_kill_kept_from_the_log_are_swept(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "set")
    begun = folder / TRASH / "2026-01-02T03-04-05-001"
    copied = left(begun / "000001")
    copied.rename(begun / "000001")
    os.utime(begun, (time.time() - 3600,) * 2)
    apply(folder, [with_text(("edit",), folder / "0.txt", "new 0")])
    assert not begun.exists()
    undo(folder)
    assert not (folder / TRASH).exists()


def test_a_first_change_that_the_disk_refuses_leaves_no_trash(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "set")

    def fail() -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DataError, match=r"0\.txt can't be written: its disk is full, .* 0 of 1 changes are done$"):
        apply(folder, [Change(("edit",), folder / "0.txt", fail, "")])
    assert not (folder / TRASH).exists()


def test_undo_takes_the_newest_changes_back_also_after_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = captioned(tmp_path / "set")
    real = changes.datetime

    class EarlierClock:
        @staticmethod
        def now(zone: Any) -> Any:
            return real(2020, 1, 1, tzinfo=zone)

    apply(folder, [with_text(("edit",), folder / "0.txt", "first")])
    monkeypatch.setattr(changes, "datetime", EarlierClock)
    apply(folder, [with_text(("edit",), folder / "1.txt", "second")])
    apply(folder, [with_text(("edit",), folder / "0.txt", "third")])
    texts = []
    for _ in range(3):
        undo(folder)
        texts.append(((folder / "0.txt").read_text(), (folder / "1.txt").read_text()))
    assert texts == [("first", "second"), ("first", "old 1"), ("old 0", "old 1")]


def test_a_caption_that_was_changed_since_the_change_was_planned_stays(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "set")
    planned = [with_text(("edit",), folder / f"{number}.txt", f"planned {number}") for number in range(2)]
    (folder / "1.txt").write_text("by another process", encoding="utf-8")
    with pytest.raises(DataError, match=r"1\.txt has changed since .* 1 of 2 changes are done: .*undo.* takes them"):
        apply(folder, planned)
    assert (folder / "1.txt").read_text() == "by another process"
    assert (folder / "0.txt").read_text() == "planned 0"


def test_an_import_that_was_killed_before_its_first_note_is_begun_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(0))
    left(tmp_path / "out" / MARKER, seconds_ago=1)
    assert unpack(tmp_path / "a.tar", tmp_path / "out").images == 4


def test_a_disk_that_fails_while_an_import_reads_ends_it_and_it_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", shard(0))
    opened = Path.open

    class Failing(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
            return super().read(512)

    def failing(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        is_shard = path.suffix == ".tar" and mode == "rb"
        return Failing(path, "rb") if is_shard else opened(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        with pytest.raises(OSError, match="Input/output error"):
            unpack(tmp_path / "a.tar", tmp_path / "out")
    assert unpack(tmp_path / "a.tar", tmp_path / "out").images == 4


def test_what_a_killed_grid_left_goes_with_the_next(tmp_path: Path) -> None:
    half = left(tmp_path / "grid-0001" / "x01.png")
    assert _new_folder(tmp_path) == tmp_path / "grid-0002"
    assert not half.exists()
