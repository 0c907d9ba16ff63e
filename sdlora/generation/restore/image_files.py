"""Generated images as files that carry their settings, and the settings of such files. Needs no torch.

PNG has the text `parameters` that other tools read, and `sdlora`, the whole request as JSON. JPEG and WebP have the
text in EXIF's UserComment (UNICODE, UTF-16, as AUTOMATIC1111's web UI writes it) and the request in MakerNote.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora import atomic, disk
from sdlora.config.generate import ImageFilesConfig, ImageFormat
from sdlora.constants import GIB, MIB
from sdlora.data.decoding import UnreadableImageError, open_image
from sdlora.errors import DataError
from sdlora.generation.generated import GeneratedImage
from sdlora.generation.restore.foreign_json import PNG_KEYS, from_json
from sdlora.generation.restore.infotext import Infotext, from_infotext, from_parsed, to_infotext
from sdlora.generation.restore.request_json import read_request, request_of
from sdlora.text_files import parse_json

SUFFIXES: Mapping[str, ImageFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SUFFIX_OF: Mapping[ImageFormat, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_TEXT_KEY, _REQUEST_KEY = "parameters", "sdlora"
SHEET_KEY = "sdlora_grid"
"""PNG text of a contact sheet: the grid's axes and the request they vary."""

_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
# EXIF's three ways to begin a comment: UTF-16, ASCII, and eight zeros for "not told".
_UNICODE, _ASCII, _UNDEFINED = b"UNICODE\0", b"ASCII\0\0\0", bytes(8)
_NOTE_START = b"sdlora\0"
_NUMBERED = re.compile(r"(\d{5,})-")
_LARGEST_FILE_BYTES = GIB
_LARGEST_DECODED_PX = 300e6


@dataclass(frozen=True)
class SavedSettings:
    """What is written into a file: the text for others, and JSON by key for sdlora."""

    text: str | None = None
    json: Mapping[str, Any] = field(default_factory=dict)


def save_image(image: GeneratedImage, path_or_folder: Path) -> Path:
    """Write the image with its settings; returns the file.

    A path with an image's suffix is taken as it is; in a folder the file is called 00012-<seed>.png, counting up.
    Nothing is ever overwritten: a name that is taken gets -2, -3, ... Raises DataError when the disk refuses, or the
    settings are too long for a JPEG.
    """
    config, settings = image.config, SavedSettings()
    if config.files.metadata:
        settings = SavedSettings(to_infotext(config, image.facts), {_REQUEST_KEY: request_of(image)})
    if path_or_folder.suffix.lower() in SUFFIXES:
        data = encode_image(image.image, SUFFIXES[path_or_folder.suffix.lower()], config.files.quality, settings)
        return _put(data, path_or_folder)
    data = encode_image(image.image, config.files.format, config.files.quality, settings)
    ending = f"{config.seed}{SUFFIX_OF[config.files.format]}"
    there = list(path_or_folder.iterdir()) if path_or_folder.is_dir() else []
    atomic.sweep_names(there)  # half a picture of a process that was killed
    number = max((int(match[1]) for path in there if (match := _NUMBERED.match(path.name))), default=-1)
    while True:
        number += 1
        path = path_or_folder / f"{number:05d}-{ending}"
        if _is_created(path, data):
            return path


def save_sheet(sheet: Image.Image, path: Path, files: ImageFilesConfig, about: Mapping[str, Any]) -> Path:
    """Write a contact sheet, as PNG if the wanted format has no room for its size; `about` says what it shows."""
    # Sheets of a large grid pass what JPEG and WebP can hold.
    longest = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}[files.format]
    format_: ImageFormat = files.format if max(sheet.size) <= longest else "png"
    settings = SavedSettings(json={SHEET_KEY: about}) if files.metadata and format_ == "png" else SavedSettings()
    return _put(encode_image(sheet, format_, files.quality, settings), path.with_suffix(SUFFIX_OF[format_]))


def encode_image(image: Image.Image, format_: ImageFormat, quality: int, settings: SavedSettings) -> bytes:
    """The image file's bytes. Raises DataError when the settings are too long for the format."""
    stream = io.BytesIO()
    if format_ == "png":
        texts = PngInfo()
        if settings.text is not None:
            texts.add_text(_TEXT_KEY, settings.text)
        for key, value in settings.json.items():
            texts.add_text(key, json.dumps(value))
        image.save(stream, "PNG", pnginfo=texts)
        return stream.getvalue()
    exif = Image.Exif()
    inner = exif.get_ifd(_EXIF_IFD)
    if settings.text is not None:
        inner[_USER_COMMENT] = _UNICODE + settings.text.encode("utf-16-be")
    if settings.json:
        inner[_MAKER_NOTE] = _NOTE_START + json.dumps(settings.json[_REQUEST_KEY]).encode()
    try:
        image.save(stream, format_.upper(), quality=quality, exif=exif)
    except ValueError as error:
        if "EXIF" not in str(error):
            raise
        raise DataError("the settings are too long for a JPEG, which holds 64 KiB; set files.format=png") from error
    return stream.getvalue()


# ---- putting files in place


def _put(data: bytes, path: Path) -> Path:
    return next(
        free
        for free in (path.with_name(f"{name}{path.suffix}") for name in atomic.numbered(path.stem))
        if _is_created(free, data)
    )


def _is_created(path: Path, data: bytes) -> bool:
    try:
        return atomic.create_file(path, data, parents=True)
    except OSError as error:
        raise DataError(disk.explain(error, path)) from error


# ---- reading


def read_image_settings(path: Path) -> Infotext:
    """The settings an image file carries: sdlora's own request if there is one, else the text that other tools write.

    Pixels are not decoded. The values are not checked yet: `files.validate(..., GenerateConfig)` does that.
    Raises DataError: no such file, no image, no settings in it, or settings that can't be read.
    """
    text, request = _embedded(path)
    damaged = ""
    if request is not None:
        try:
            return read_request(request)
        except ValueError as error:
            damaged = str(error)
    if text:
        try:
            found = from_parsed(from_json(text)) if _is_json(text) else from_infotext(text)
        except (DataError, ValueError) as error:
            raise DataError(f"{path}: {error}") from error
        if damaged:
            warning = f"its request is damaged ({damaged}), so its text is read, which says less"
            return replace(found, warnings=(warning, *found.warnings))
        return found
    if damaged:
        raise DataError(f"{path}: its settings are damaged ({damaged})")
    raise DataError(f"{path} carries no settings{_perhaps(path)}")


def _is_json(text: str) -> bool:
    """Whether a text is an object or a list of JSON; a prompt may begin with a brace, too."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return isinstance(parse_json(text), (dict, list))
    except ValueError:
        return False


def read_image_text(path: Path) -> str:
    """The text that other tools read in an image file, empty if it has none. Raises DataError for no image."""
    return _embedded(path)[0] or ""


def _embedded(path: Path) -> tuple[str | None, str | None]:
    """Text and request as they stand in the file."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.stat().st_size > _LARGEST_FILE_BYTES:
        raise DataError(f"{path} has {path.stat().st_size / MIB:,.0f} MiB; images above 1,024 MiB are not opened")
    try:
        with open_image(path) as image:
            if image.format == "PNG":
                return _png_texts(image)
            inner = image.getexif().get_ifd(_EXIF_IFD)
            comment, note = inner.get(_USER_COMMENT), inner.get(_MAKER_NOTE)
    except UnreadableImageError as error:
        raise DataError(f"{path}: {error}") from error
    request = None
    if isinstance(note, bytes) and note.startswith(_NOTE_START):
        request = note.removeprefix(_NOTE_START).decode("utf-8", "replace")
    return _user_comment(comment), request


def _png_texts(image: Image.Image) -> tuple[str | None, str | None]:
    texts = image.info
    small = image.width * image.height <= _LARGEST_DECODED_PX
    if not any(isinstance(texts.get(key), str) for key in (_TEXT_KEY, _REQUEST_KEY, *PNG_KEYS)) and small:
        image.load()  # texts may stand behind the pixels
        texts = image.info
    if isinstance(texts.get(SHEET_KEY), str):
        raise UnreadableImageError("this is a grid's contact sheet; take one of the single images beside it")
    text, request = texts.get(_TEXT_KEY), texts.get(_REQUEST_KEY)
    if not isinstance(text, str):
        text = next((found for key in PNG_KEYS if isinstance(found := texts.get(key), str) and _is_json(found)), None)
    return text if isinstance(text, str) else None, request if isinstance(request, str) else None


def _user_comment(comment: Any) -> str | None:
    if isinstance(comment, str):
        return comment
    if not isinstance(comment, bytes) or len(comment) <= len(_UNICODE):
        return None
    start, content = comment[: len(_UNICODE)], comment[len(_UNICODE) :]
    if start == _UNICODE:
        little = content[1::2].count(0) > content[::2].count(0)  # some writers take the other byte order
        return content.decode("utf-16-le" if little else "utf-16-be", "replace").lstrip("\ufeff").strip("\0")
    if start in (_ASCII, _UNDEFINED):
        return content.decode("utf-8", "replace").strip("\0")
    return None


def _perhaps(path: Path) -> str:
    with suppress(UnreadableImageError), open_image(path) as image:
        if "workflow" in image.info:
            return " that sdlora reads: it holds a ComfyUI workflow without the prompt that was run"
    return ": it was saved without, or by a program that removed them"
