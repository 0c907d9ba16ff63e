"""How an image differs each time it is seen: drawn anew, then applied to its pixels, and to its mask where it fits."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageEnhance

from sdlora.config.images import ImagesConfig
from sdlora.data.buckets import Placement

_HUES = 256
"""Steps of Pillow's hue channel in a full circle."""


@dataclass(frozen=True)
class Variation:
    """One way an image is changed. Factors of 1, angles of 0 change nothing."""

    zoom: float = 1.0
    degrees: float = 0.0
    """Turn of the picture, counter-clockwise."""
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_degrees: float = 0.0


PLAIN = Variation()


def draw_variation(images: ImagesConfig, generator: random.Random) -> Variation:
    """A variation within the bounds of the settings; PLAIN, without any draw, where all of them are off."""
    if not images.varies:
        return PLAIN
    # Each value is drawn, also where its bound is 0: switching one on must not change the others.
    zoom = 1 + images.crop_jitter * generator.random()
    degrees = images.rotation * generator.uniform(-1, 1)
    brightness, contrast, saturation = (1 + images.colour_jitter * generator.uniform(-1, 1) for _ in range(3))
    return Variation(zoom, degrees, brightness, contrast, saturation, images.hue_jitter * generator.uniform(-1, 1))


def zoomed(placement: Placement, zoom: float) -> Placement:
    """The placement of an image that is enlarged further, so that its window has more room to move."""
    if zoom == 1:
        return placement
    return dataclasses.replace(
        placement,
        resized_width_px=round(placement.resized_width_px * zoom),
        resized_height_px=round(placement.resized_height_px * zoom),
        scale=placement.scale * zoom,
    )


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """The image turned about its centre, enlarged just so far that no corner of its frame stays empty."""
    if degrees == 0:
        return image
    angle = math.radians(degrees)
    width, height = image.size
    longer = max(width / height, height / width)
    # Turned back, every corner of the result must lie inside the source; for this shape that takes just this zoom.
    scale = math.cos(angle) + abs(math.sin(angle)) * longer
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = width / 2, height / 2
    # From a pixel of the result to its place in the source; the row axis points down.
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def recoloured(image: Image.Image, variation: Variation) -> Image.Image:
    """The image, in mode RGB, with the variation's brightness, contrast, saturation and hue."""
    for enhance, factor in (
        (ImageEnhance.Brightness, variation.brightness),
        (ImageEnhance.Contrast, variation.contrast),
        (ImageEnhance.Color, variation.saturation),
    ):
        if factor != 1:
            image = enhance(image).enhance(factor)
    shift = round(variation.hue_degrees / 360 * _HUES) % _HUES
    if not shift:
        return image
    hue, saturation, value = image.convert("HSV").split()
    moved = hue.point([(level + shift) % _HUES for level in range(_HUES)])
    return Image.merge("HSV", (moved, saturation, value)).convert("RGB")
