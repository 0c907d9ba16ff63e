"""The picture that drawing starts from, and the mask painted over it, as files that a request can name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from PIL import Image

_PAINTED_ALPHA = 8
"""Least opacity of a stroke that counts, of 255: brushes have soft edges."""


def keep_editor(editor: Any, folder: Path) -> tuple[Path | None, Path | None]:
    """Picture and mask out of an image editor's value (PIL images), as PNG files named by their content.

    The mask is white where something was painted; None where nothing was, and both None for an empty editor.
    """
    background = editor.get("background") if isinstance(editor, dict) else None
    if not isinstance(background, Image.Image):
        return None, None
    picture = _flat(background)
    mask = Image.new("L", picture.size)
    for layer in editor.get("layers") or ():
        painted = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha >= _PAINTED_ALPHA else 0)
        if painted.size != mask.size:
            painted = painted.resize(mask.size, Image.Resampling.NEAREST)
        mask.paste(255, mask=painted)
    return _keep(picture, folder), _keep(mask, folder) if mask.getbbox() else None


def _flat(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if picture.mode in ("RGBA", "LA", "PA", "P"):
        on_white = Image.new("RGBA", picture.size, "white")
        on_white.alpha_composite(picture.convert("RGBA"))
        return on_white.convert("RGB")
    return picture.convert("RGB")


def _keep(picture: Image.Image, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()[:24]
    target = folder / f"{name}.png"
    if not target.is_file():
        beside = target.with_name(f".{target.name}.part")
        picture.save(beside, "PNG")
        beside.replace(target)
    return target
