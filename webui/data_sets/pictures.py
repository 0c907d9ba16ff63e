"""The large picture of an image for the editor: the whole of it, what a mask leaves out tinted red."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from sdlora.data.decoding import UnreadableImageError, load_grey
from webui.data_sets.listing import Item
from webui.thumbnails import keep, thumbnail

EDGE_PX = 1024
_TINT = (220, 40, 40)
_TINT_OPACITY = 0.6


def large_picture(item: Item, folder: Path) -> Path:
    """A file of at most 1024 px on its longer side in `folder`, made anew when the image or its mask has changed."""
    plain = thumbnail(item.path, folder, EDGE_PX)
    if item.mask is None:
        return plain
    try:
        key = f"{plain.name}|{item.mask}|{item.mask.stat().st_mtime_ns}"
        target = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.webp"
        if not target.is_file():
            keep(_tinted(plain, item.mask), target)
    except (OSError, UnreadableImageError):
        return plain
    return target


def _tinted(plain: Path, mask: Path) -> Image.Image:
    with Image.open(plain) as opened:
        picture = opened.convert("RGB")
    left_out = (
        load_grey(mask).resize(picture.size).point([round((255 - value) * _TINT_OPACITY) for value in range(256)])
    )
    picture.paste(_TINT, mask=left_out)
    return picture
