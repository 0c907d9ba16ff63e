"""Text in whatever encoding an editor left it: read right, or refused by name with what to do."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.caption_files import CaptionFolders
from sdlora.data.images import scan
from sdlora.data.sets.listing import write_caption
from sdlora.errors import ConfigError, DataError
from sdlora.text_files import UnreadableTextError, decode_text
from tests.support.dataset_pictures import picture, save_captioned

READ_RIGHT = {
    "utf-8": "café, 猫".encode(),
    "utf-8 with mark": codecs.BOM_UTF8 + "café, 猫".encode(),
    "utf-16-le with mark": codecs.BOM_UTF16_LE + "café, 猫".encode("utf-16-le"),
    "utf-16-be with mark": codecs.BOM_UTF16_BE + "café, 猫".encode("utf-16-be"),
    "utf-32 with mark": "café, 猫".encode("utf-32"),
}


@pytest.mark.parametrize("content", READ_RIGHT.values(), ids=READ_RIGHT)
def test_marked_encodings_are_read_right(content: bytes) -> None:
    assert decode_text(content) == "café, 猫"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_powershells_utf16_is_read_right_also_without_its_mark(encoding: str) -> None:
    assert decode_text("ohwx fox, red scarf\r\n".encode(encoding)) == "ohwx fox, red scarf\r\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("café".encode("cp1252"), "is not UTF-8 text .*0xe9 at position 3; it may be Windows-1252.*save it as UTF-8"),
        ("ねこ".encode("shift_jis"), "it may be Shift-JIS"),
        (b"a fox\0 in snow", "holds a NUL character .position 5."),
    ],
)
def test_everything_else_is_refused_with_what_it_may_be(content: bytes, words: str) -> None:
    with pytest.raises(UnreadableTextError, match=words):
        decode_text(content)


def test_a_nul_in_a_caption_is_never_trained(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "").with_suffix(".txt").write_bytes(b"a\0 fox")
    with pytest.raises(DataError, match=r"a\.txt holds a NUL character"):
        scan(ImagesConfig(folder=tmp_path, cache=False), CaptionsConfig())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-le"])
def test_a_preset_in_any_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    preset = tmp_path / "my.yaml"
    preset.write_bytes("name: mine\r\ncaptions:\r\n  trigger: ohwx\r\n".encode(encoding))
    assert files.load(preset).captions.trigger == "ohwx"


def test_a_preset_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    preset = tmp_path / "my.yaml"
    preset.write_bytes("captions: {trigger: café}".encode("cp1252"))
    with pytest.raises(ConfigError, match=r"my\.yaml has 1 problem:\n  is not UTF-8 text .*Windows-1252"):
        files.load(preset)


@pytest.mark.parametrize(
    ("yaml_text", "words"),
    [
        (
            'images: {folder: "C:\\Users\\new"}',
            "a backslash in double quotes is an escape.*Windows paths with /",
        ),
        ('images: {folder: "C:\\new\\tiny"}', r"images\.folder: 'C:\\new\\tiny' holds a control character"),
        ('base_model: {model: "D:\\new.safetensors"}', r"base_model\.model: 'D:\\new\.safetensors' holds a control"),
        ('outputs: {folder: ""}', r"outputs\.folder: is empty, which would be the current folder"),
    ],
)
def test_paths_that_yaml_changed_or_that_are_empty_are_refused(tmp_path: Path, yaml_text: str, words: str) -> None:
    preset = tmp_path / "my.yaml"
    preset.write_text(yaml_text)
    with pytest.raises(ConfigError, match=words):
        files.load(preset)


def test_an_empty_folder_on_the_command_line_does_not_scan_the_current_one() -> None:
    with pytest.raises(ConfigError, match=r"images\.folder: is empty, which would be the current folder"):
        files.load(None, ["images.folder="])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are of POSIX")
@pytest.mark.parametrize("what", ["pipe", "device"])
def test_a_pipe_or_a_device_in_a_captions_place_is_named_and_not_waited_for(tmp_path: Path, what: str) -> None:
    picture(0).save(tmp_path / "a.png")
    if what == "pipe":
        os.mkfifo(tmp_path / "a.txt")
    else:
        (tmp_path / "a.txt").symlink_to("/dev/zero")
    found = CaptionFolders(tmp_path)
    assert not found.caption(tmp_path / "a.png")
    assert found.problems == ["a.txt can't be read: it is a pipe, a socket or a device, not a file"]
    with pytest.raises(OSError, match="not a file"):
        write_caption(tmp_path / "a.png", "new")
