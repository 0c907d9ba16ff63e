"""A picture to start from and what was painted over it, as files that a request can name. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sdlora import atomic
from sdlora.data.masking import mask_of_paint


def keep_painted(background: Image.Image, layers: Sequence[Image.Image], folder: Path) -> tuple[Path, Path | None]:
    """Picture and mask as PNG files named by their content; the mask is white where a layer has paint, None without.

    background: any mode. layers: transparent where nothing is painted, of any size.
    """
    picture = _flat(background)
    mask = mask_of_paint(layers, picture.size)
    return _keep(picture, folder), _keep(mask, folder) if mask.getbbox() else None


def _flat(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if picture.mode in ("RGBA", "LA", "PA", "P"):
        on_white = Image.new("RGBA", picture.size, "white")
        on_white.alpha_composite(picture.convert("RGBA"))
        return on_white.convert("RGB")
    return picture.convert("RGB")


def _keep(picture: Image.Image, folder: Path) -> Path:
    # Mode and size too: the same bytes in other rows are another picture.
    name = hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()[:24]
    target = folder / f"{name}.png"
    if not target.is_file():
        with atomic.writing(target, parents=True) as file:
            picture.save(file, "PNG")
    return target
