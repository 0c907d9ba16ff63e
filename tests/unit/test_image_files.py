"""Image files that carry their settings."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.config import files
from sdlora.config.generate import GenerateConfig, ImageFilesConfig, StartImageConfig, UsedAdapter
from sdlora.errors import DataError
from sdlora.generation.restore.image_files import read_image_settings, save_image, save_sheet

PROMPT = 'a "cat", 猫\nNegative prompt: this line is in the prompt,\r\n Steps: 5, <b>'


def generated(**settings: Any) -> Any:
    """What a generator yields, as far as it is written into files."""
    values = {"prompt": PROMPT, "seed": 7, "width_px": 64, "height_px": 64, "guidance": 3.3} | settings
    facts = SimpleNamespace(model_name="builtin:emoji", model_hash=None, adapter_hashes={"ink": "46e3576bb990"})
    return SimpleNamespace(image=Image.new("RGB", (64, 64), "red"), config=GenerateConfig(**values), facts=facts)


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_every_format_gives_the_exact_request_back(tmp_path: Path, format_: str) -> None:
    adapter = UsedAdapter(file="sub/ink.safetensors", weight=0.1 + 0.2, blocks={"MID": 0.5}, start=0.2)
    image = generated(files=ImageFilesConfig(format=format_, folder=tmp_path), adapters=(adapter,))
    read = read_image_settings(save_image(image, tmp_path))
    assert read.by_sdlora
    assert read.adapter_hashes == {"ink": "46e3576bb990"}
    assert "folder" not in read.values["files"]
    again = files.validate(read.values, "the image", GenerateConfig)
    assert again == image.config.model_copy(update={"files": ImageFilesConfig(format=format_)})


def test_files_are_numbered_on_and_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "00041-3.webp").write_bytes(b"older")
    (tmp_path / "notes-1.txt").write_text("other")
    image = generated()
    names = [save_image(image, tmp_path).name for _ in range(2)]
    assert names == ["00042-7.png", "00043-7.png"]
    assert save_image(generated(seed=9), tmp_path / "new" / "folder").name == "00000-9.png"
    names = [save_image(image, tmp_path / "cat.jpg").name for _ in range(2)]
    assert names == ["cat.jpg", "cat-2.jpg"]
    assert Image.open(tmp_path / "cat-2.jpg").format == "JPEG"
    assert not list(tmp_path.rglob(".*"))


def test_without_metadata_a_file_holds_pixels_alone(tmp_path: Path) -> None:
    for format_ in ("png", "jpeg"):
        path = save_image(generated(files=ImageFilesConfig(format=format_, metadata=False)), tmp_path)
        assert b"sdlora" not in path.read_bytes()
        with pytest.raises(DataError, match="carries no settings: it was saved without, or by a program that removed"):
            read_image_settings(path)


def test_the_home_folder_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    config = {
        "adapters": (UsedAdapter(file=str(tmp_path / "loras" / "ink.safetensors")),),
        "adapter_folders": (tmp_path / "loras",),
        "start": StartImageConfig(image=tmp_path / "a.png"),
        "base_model": {"model": str(tmp_path / "model.safetensors")},
        "files": ImageFilesConfig(folder=tmp_path / "out"),
    }
    path = save_image(generated(**config), tmp_path)
    assert str(tmp_path).encode() not in path.read_bytes()
    values = read_image_settings(path).values
    assert values["adapters"][0]["file"] == str(tmp_path / "loras" / "ink.safetensors")
    assert values["base_model"]["model"] == str(tmp_path / "model.safetensors")
    assert values["start"]["image"] == str(tmp_path / "a.png")
    assert values["adapter_folders"] == [str(tmp_path / "loras")]


def test_settings_too_long_for_a_jpeg_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too long for a JPEG, which holds 64 KiB; set files.format=png"):
        save_image(generated(prompt="x" * 40_000, files=ImageFilesConfig(format="jpeg")), tmp_path)
    assert save_image(generated(prompt="x" * 40_000), tmp_path).is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="/file exists already, as something else"):
        save_image(generated(), tmp_path / "file")


# ---- files of others, damaged and hostile ones


def png_with(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "a cat, 猫".encode("utf-16-be"),
        b"UNICODE\0" + "a cat, 猫".encode("utf-16-le"),
        b"ASCII\0\0\0" + "a cat, 猫".encode(),
        bytes(8) + "a cat, 猫".encode(),
    ],
)
def test_user_comments_in_every_usual_encoding_are_read(tmp_path: Path, comment: bytes) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    read = read_image_settings(tmp_path / "a.jpg")
    assert read.values["prompt"] == "a cat, 猫"
    assert not read.by_sdlora


def test_a_damaged_request_falls_back_to_the_text(tmp_path: Path) -> None:
    path = png_with(tmp_path / "a.png", sdlora='{"request": [', parameters="a cat")
    read = read_image_settings(path)
    assert read.values["prompt"] == "a cat"
    assert read.warnings[0].startswith("its request is damaged (")
    for hostile in ('{"request": 3}', "[" * 100_000, "9" * 5000):
        with pytest.raises(DataError, match=r"its settings are damaged \("):
            read_image_settings(png_with(tmp_path / "b.png", sdlora=hostile))


def test_files_that_are_no_images_with_settings_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    for name, reason in {
        "none.png": "there is no such file",
        "empty.png": "the file is empty",
        "text.png": "not a JPEG, PNG, WebP, AVIF, BMP or GIF image",
        "cut.png": "damaged",
    }.items():
        with pytest.raises(DataError, match=rf"{name}: .*{reason}"):
            read_image_settings(tmp_path / name)
    with pytest.raises(DataError, match="carries no settings that sdlora reads: it holds a ComfyUI workflow without"):
        read_image_settings(png_with(tmp_path / "comfy.png", workflow="{}"))
    with pytest.raises(DataError, match="its settings are JSON of an unknown program, with 3"):
        read_image_settings(png_with(tmp_path / "comfy.png", prompt='{"3": {}}', workflow="{}"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_texts_that_unpack_to_gigabytes_are_not_unpacked(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 2**26))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 200)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + bomb + pixels)
    with pytest.raises(DataError, match=r"bomb.png: .*"):
        read_image_settings(tmp_path / "bomb.png")


def test_an_image_of_a_million_pixels_a_side_is_not_decoded(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0))
    text = chunk(b"tEXt", b"parameters\0a cat")
    start, end = b"\x89PNG\r\n\x1a\n" + header, chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(start + text + end)
    assert read_image_settings(tmp_path / "huge.png").values["prompt"] == "a cat"
    (tmp_path / "huge.png").write_bytes(start + end)
    with pytest.raises(DataError, match="carries no settings"):
        read_image_settings(tmp_path / "huge.png")


def test_a_sparse_file_of_gigabytes_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(DataError, match="big.png has 2,048 MiB; images above 1,024 MiB are not opened"):
        read_image_settings(tmp_path / "big.png")


def test_a_contact_sheet_says_what_it_is_and_takes_another_format_when_too_wide(tmp_path: Path) -> None:
    wide = Image.new("RGB", (20_000, 4))
    path = save_sheet(wide, tmp_path / "sheet.png", ImageFilesConfig(format="webp"), {"axes": ["seed=1,2"]})
    assert path.name == "sheet.png"
    assert json.loads(Image.open(path).text["sdlora_grid"]) == {"axes": ["seed=1,2"]}  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="this is a grid's contact sheet; take one of the single images beside it"):
        read_image_settings(path)
    small = save_sheet(Image.new("RGB", (20, 4)), tmp_path / "sheet.png", ImageFilesConfig(format="jpeg"), {})
    assert Image.open(io.BytesIO(small.read_bytes())).format == "JPEG"
