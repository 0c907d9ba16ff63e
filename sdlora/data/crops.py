"""Pixels and masks of one image as the model sees them, and SDXL's size conditions.

Tensor legend: C channel, H height, W width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
from PIL import Image

from sdlora.constants import LATENT_FACTOR
from sdlora.data.buckets import Placement
from sdlora.data.decoding import UnreadableImageError, load_rgb
from sdlora.data.focus import Box, focus_of
from sdlora.data.images import ImageRecord, load_mask
from sdlora.data.variation import PLAIN, Variation, recoloured, turned
from sdlora.errors import DataError
from sdlora.models.size_conditions import SizeConditions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """Loss weights in [0, 1] with the geometry of the image's pixels."""

    pixels_HW: Tensor
    latents_HW: Tensor
    """The same at latent size: each value is the mean over 8x8 pixels."""


def sample_crop(placement: Placement, generator: random.Random, focus: Box | None = None) -> tuple[int, int]:
    """A random place (x, y) for the window on the resized image, not mirrored; it shows the whole focus if it can."""
    (low_x, high_x), (low_y, high_y) = _ranges(placement, focus)
    return generator.randint(low_x, high_x), generator.randint(low_y, high_y)


def fixed_crop(placement: Placement, focus: Box | None) -> tuple[int, int]:
    """The place (x, y) of the window in the centre, or as near to the focus as the image's edges allow."""
    room_x, room_y = placement.crop_room_px
    if focus is None:
        return room_x // 2, room_y // 2
    x = (focus.left + focus.right) / 2 * placement.resized_width_px - placement.bucket.width_px / 2
    y = (focus.top + focus.bottom) / 2 * placement.resized_height_px - placement.bucket.height_px / 2
    return min(max(0, round(x)), room_x), min(max(0, round(y)), room_y)


def _ranges(placement: Placement, focus: Box | None) -> tuple[tuple[int, int], tuple[int, int]]:
    room_x, room_y = placement.crop_room_px
    if focus is None:
        return (0, room_x), (0, room_y)
    x, y = fixed_crop(placement, focus)
    width, height = placement.resized_width_px, placement.resized_height_px
    across = max(0, math.ceil(focus.right * width) - placement.bucket.width_px), min(room_x, int(focus.left * width))
    down = max(0, math.ceil(focus.bottom * height) - placement.bucket.height_px), min(room_y, int(focus.top * height))
    # A focus larger than the window: its middle is kept.
    return (across if across[0] <= across[1] else (x, x)), (down if down[0] <= down[1] else (y, y))


def crop_image(
    record: ImageRecord,
    placement: Placement,
    *,
    flip: bool,
    crop_xy: tuple[int, int] | None,
    background: str,
    variation: Variation = PLAIN,
) -> Image.Image:
    """The image in its bucket, in mode RGB; arguments and errors as in `prepare_pixels`."""
    with _named(record):
        image = load_rgb(record.path, background)
    return recoloured(_cut(image, record, placement, flip, crop_xy, variation), variation)


def crop_mask(
    record: ImageRecord,
    placement: Placement,
    *,
    flip: bool,
    crop_xy: tuple[int, int] | None,
    variation: Variation = PLAIN,
) -> Image.Image:
    """The image's mask in its bucket, in mode L, white where it is trained. Raises DataError like `prepare_pixels`."""
    with _named(record):
        mask = load_mask(record, (record.width_px, record.height_px))
    return _cut(mask, record, placement, flip, crop_xy, variation)


def prepare_pixels(
    record: ImageRecord,
    placement: Placement,
    *,
    flip: bool,
    crop_xy: tuple[int, int] | None,
    background: str,
    variation: Variation = PLAIN,
) -> Tensor:
    """The image in its bucket: float32 pixels_CHW in [-1, 1].

    crop_xy: place of the window on the resized, not yet mirrored image; None is around the image's focus. flip mirrors
    left and right after the crop. background: colour behind transparent pixels. variation: turn and colours; its zoom
    is the placement's. Raises DataError for a file that has gone bad.
    """
    import torch

    image = crop_image(record, placement, flip=flip, crop_xy=crop_xy, background=background, variation=variation)
    pixels_HWC = numpy.asarray(image, dtype=numpy.float32) / 127.5 - 1
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


def prepare_mask(
    record: ImageRecord,
    placement: Placement,
    *,
    flip: bool,
    crop_xy: tuple[int, int] | None,
    unmasked_weight: float = 0.0,
    variation: Variation = PLAIN,
) -> Mask:
    """The image's loss mask with the geometry of `prepare_pixels`; all ones for an image without a mask.

    unmasked_weight: weight outside the mask. Raises DataError for a file that has gone bad.
    """
    import torch

    mask = crop_mask(record, placement, flip=flip, crop_xy=crop_xy, variation=variation)
    values_HW = numpy.asarray(mask, dtype=numpy.float32) / 255
    pixels_HW = torch.from_numpy(unmasked_weight + (1 - unmasked_weight) * values_HW)
    latents_HW = torch.nn.functional.avg_pool2d(pixels_HW[None], LATENT_FACTOR)[0]
    return Mask(pixels_HW, latents_HW)


def size_conditions(
    record: ImageRecord, placement: Placement, *, flip: bool, crop_xy: tuple[int, int] | None
) -> SizeConditions:
    """SDXL's size conditions of a crop; on a mirrored image the window's left edge is counted on the mirrored one."""
    x, y = _window(record, placement, crop_xy)
    return SizeConditions(
        original_height=record.height_px,
        original_width=record.width_px,
        crop_top=y,
        crop_left=placement.crop_room_px[0] - x if flip else x,
        target_height=placement.bucket.height_px,
        target_width=placement.bucket.width_px,
    )


@contextmanager
def _named(record: ImageRecord) -> Iterator[None]:
    try:
        yield
    except UnreadableImageError as error:
        raise DataError(
            f"{record.path} or its mask was readable when it was scanned, but is not now: {error}"
        ) from error


def _window(record: ImageRecord, placement: Placement, crop_xy: tuple[int, int] | None) -> tuple[int, int]:
    room_x, room_y = placement.crop_room_px
    x, y = fixed_crop(placement, focus_of(record)) if crop_xy is None else crop_xy
    if not (0 <= x <= room_x and 0 <= y <= room_y):
        raise ValueError(f"crop_xy {crop_xy} leaves the image: the window can move by ({room_x}, {room_y}) pixels")
    return x, y


def _cut(
    image: Image.Image,
    record: ImageRecord,
    placement: Placement,
    flip: bool,
    crop_xy: tuple[int, int] | None,
    variation: Variation,
) -> Image.Image:
    resized = (placement.resized_width_px, placement.resized_height_px)
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.LANCZOS)
    image = turned(image, variation.degrees)
    x, y = _window(record, placement, crop_xy)
    image = image.crop((x, y, x + placement.bucket.width_px, y + placement.bucket.height_px))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
