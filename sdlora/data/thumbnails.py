"""Small pictures of images for galleries and editors, made once and kept: full images would be megabytes a tile."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdlora import atomic
from sdlora.data.decoding import UnreadableImageError, load_grey, open_image, to_rgb
from sdlora.data.images import THREADS
from sdlora.file_memory import stamp

EDGE_PX = 256
LARGE_EDGE_PX = 1024
_TINT = (220, 40, 40)
"""Colour over what a mask leaves out."""
_TINT_OPACITY = 0.6
_UNREADABLE = "can't be read"


def thumbnail(image: Path, folder: Path, edge_px: int = EDGE_PX) -> Path:
    """A WebP of at most `edge_px` on its longer side, made anew when the image has changed.

    A file that is no readable image gets a tile that says so: one bad file must not hide a gallery.
    """
    target = _place(image, folder, edge_px)
    if target is None:
        return tile(f"{image.name} is gone", folder, edge_px)
    if target.is_file():
        return target
    try:
        with open_image(image) as opened:
            # A JPEG is decoded at the smallest scale that leaves twice the pixels, from which a good thumbnail can be
            # made.
            opened.draft("RGB", (2 * edge_px, 2 * edge_px))
            small = to_rgb(opened, "#ffffff")
            small.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    except (UnreadableImageError, OSError, ValueError):
        return tile(f"{image.name} {_UNREADABLE}", folder, edge_px)
    return keep(small, target)


def make_thumbnails(images: Sequence[Path], folder: Path) -> list[Path]:
    """The thumbnails of many images, made side by side."""
    places = [_place(image, folder) for image in images]
    made = [place for place in places if place is not None and place.is_file()]
    if len(made) == len(images):  # as of a page that is shown again: threads would take longer than all else here
        return made
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(lambda image: thumbnail(image, folder), images))


def _place(image: Path, folder: Path, edge_px: int = EDGE_PX) -> Path | None:
    """Where the thumbnail of an image as it is now lies once it is made; None when the image is gone."""
    try:
        seen = stamp(image.stat())
    except OSError:
        return None
    key = f"{image.resolve()}|{seen}|{edge_px}"
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.webp"


def large_picture(image: Path, mask: Path | None, folder: Path) -> Path:
    """A WebP of at most 1024 px, what the mask leaves out tinted red; made anew when the image or its mask changes."""
    plain = thumbnail(image, folder, LARGE_EDGE_PX)
    if mask is None:
        return plain
    try:
        key = f"{plain.name}|{mask}|{stamp(mask.stat())}"
        target = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.webp"
        if not target.is_file():
            with Image.open(plain) as opened:
                picture = opened.convert("RGB")
            keep(tint_left_out(picture, load_grey(mask).resize(picture.size)), target)
    except (OSError, UnreadableImageError):
        return plain
    return target


def tint_left_out(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture (mode RGB), in place, red where the mask (mode L, of the same size) is dark; returns it."""
    picture.paste(_TINT, mask=mask.point([round((255 - value) * _TINT_OPACITY) for value in range(256)]))
    return picture


def tile(text: str, folder: Path, edge_px: int = EDGE_PX) -> Path:
    """A plain coloured picture with a text on it, for what has no picture: always the same colour for the same text."""
    target = folder / f"tile-{hashlib.sha256(f'{text}|{edge_px}'.encode()).hexdigest()[:24]}.webp"
    if target.is_file():
        return target
    hue = int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 0xFFFF
    dark, light = (_rgb(hue, 0.35, value) for value in (0.32, 0.5))
    picture = Image.linear_gradient("L").resize((edge_px, edge_px))
    picture = Image.composite(Image.new("RGB", picture.size, dark), Image.new("RGB", picture.size, light), picture)
    font = ImageFont.load_default(edge_px / 11)
    ImageDraw.Draw(picture).multiline_text(
        (edge_px / 2, edge_px / 2), _wrapped(text), "white", font, anchor="mm", align="center", spacing=edge_px / 40
    )
    return keep(picture, target)


def _wrapped(text: str, width: int = 16, lines: int = 5) -> str:
    """Lines of at most `width` characters, broken behind separators where there are some."""
    rest = text
    broken: list[str] = []
    while rest and len(broken) < lines:
        if len(rest) <= width:
            cut = len(rest)
        else:
            cut = max((rest.rfind(mark, width // 2, width) + 1 for mark in " -_."), default=0) or width
        broken.append(rest[:cut].strip())
        rest = rest[cut:]
    return "\n".join(broken) + ("..." if rest else "")


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def keep(picture: Image.Image, target: Path) -> Path:
    """Write a picture as WebP in one go, however many threads make the same one; returns its path."""
    with atomic.writing(target, parents=True, durable=False) as file:
        picture.save(file, "WEBP", quality=82)
    return target
