"""What a crop must not lose of an image: a face, told by the file's name, or what its mask shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.data.decoding import UnreadableImageError
from sdlora.data.images import ImageRecord, load_mask

_FACE = re.compile(r".*_(\d{1,5})_(\d{1,5})_(\d{1,5})_(\d{1,5})")
_SMALLEST_FACE_PX = 16
_INSIDE = 128
"""Least value of a mask's pixel that counts as its subject."""


@dataclass(frozen=True)
class Box:
    """A rectangle in an image, in shares of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


def face_in_name(path: Path, width_px: int, height_px: int) -> Box | None:
    """The face of a file called NAME_x_y_width_height, centre and size in pixels, as sd-scripts' face finder writes."""
    match = _FACE.fullmatch(path.stem)
    if match is None:
        return None
    x, y, width, height = (int(number) for number in match.groups())
    # A date among numbers, as in trip_2024_01_02_03, would be a face of 2 x 3 pixels.
    if min(width, height) < _SMALLEST_FACE_PX or x >= width_px or y >= height_px:
        return None
    edges = ((x - width / 2) / width_px, (y - height / 2) / height_px, (x + width / 2) / width_px)
    return Box(*edges, (y + height / 2) / height_px)


def focus_of(record: ImageRecord) -> Box | None:
    """What the image's crop is centred on; None for its middle."""
    if record.crop_focus == "face":
        return face_in_name(record.path, record.width_px, record.height_px)
    return _subject(record) if record.crop_focus == "mask" and record.has_mask else None


@lru_cache(maxsize=4096)
def _subject(record: ImageRecord) -> Box | None:
    try:
        mask = load_mask(record, (record.width_px, record.height_px))
    except UnreadableImageError:  # told with the file's name when its pixels are needed
        return None
    box = mask.point(lambda level: 255 if level >= _INSIDE else 0).getbbox()
    if box is None:
        return None
    return Box(box[0] / mask.width, box[1] / mask.height, box[2] / mask.width, box[3] / mask.height)
