"""Editing a caption keeps the encoding and the mark of its file, wherever it is edited; undo gives every byte back."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning.run import caption_folder
from sdlora.data.fix.changes import apply, undo
from sdlora.data.fix.edit import plan_edit
from sdlora.data.fix.fixes import plan_fixes
from sdlora.data.sets import edits, listing
from sdlora.text_files import decode_text, encoded_like

BEFORE, AFTER = "a red cat, red\r\n", "a blue cat, blue"

ENCODED = {
    "utf-8": b"",
    "utf-8 with a mark": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-16-le without": b"",
}


def by_command(folder: Path) -> None:
    apply(folder, plan_edit(folder, "red", "blue"))


def on_the_page(folder: Path) -> None:
    edit = edits.Edit("replace", "red", "blue")
    edits.make_edit(folder, edits.plan_edit(listing.read(folder), edit))


def by_hand(folder: Path) -> None:
    listing.write_caption(folder / "a.png", AFTER)


def by_a_model(folder: Path) -> None:
    caption_folder(folder, CaptioningConfig(existing="overwrite"), captioner=lambda images: [AFTER] * len(images))


def by_a_fix(folder: Path) -> None:
    config = files.load(None, ["captions.trigger=blue", "images.cache=false"])
    apply(folder, plan_fixes(folder, ["trigger-missing"], config))


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("change", [by_command, on_the_page, by_hand, by_a_model, by_a_fix])
def test_a_changed_caption_keeps_its_encoding(tmp_path: Path, name: str, change: Callable[[Path], None]) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    mark, encoding = ENCODED[name], name.partition(" ")[0]
    before = mark + BEFORE.encode(encoding)
    (tmp_path / "a.txt").write_bytes(before)
    change(tmp_path)
    content = (tmp_path / "a.txt").read_bytes()
    assert content.startswith(mark)
    assert "blue" in content[len(mark) :].decode(encoding)
    assert decode_text(content) == content[len(mark) :].decode(encoding)
    if change is not by_hand:
        undo(tmp_path)
        assert (tmp_path / "a.txt").read_bytes() == before


def test_text_that_its_files_encoding_could_not_be_told_by_is_written_as_utf8() -> None:
    assert encoded_like("猫", "a cat".encode("utf-16-le")) == "猫".encode()
    assert encoded_like("a cat", b"caf\xe9") == b"a cat"
    assert encoded_like("a cat", b"") == b"a cat"
