"""What one image looks like in numbers: kind of file, brightness, sharpness, JPEG damage, fingerprint.

Array legend: H height, W width, C channel. Each image is decoded once, at no more than needed, and let go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image, ImageChops

from sdlora.data.decoding import is_animated, open_image, to_eight_bits

FINGERPRINT_EDGE = 16
_JPEG_LUMINANCE_SUM = 3688
"""Sum of the 64 luminance steps in the example table of the JPEG standard (ITU-T T.81, table K.1), quality 50."""
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Measures:
    """Figures of one image. The fingerprint takes about 300 bytes; no pixels are kept."""

    animated: bool
    exif_rotated: bool
    transparent: bool
    """Whether any pixel lets the background through."""
    grey: bool
    darkest: float
    """Brightness below which 2 % of the pixels lie, 0 to 255."""
    brightest: float
    """Brightness below which 98 % of the pixels lie."""
    sharpness: float
    """The steepest edge over the contrast, at the size at which the image is trained: 1 is a hard edge."""
    jpeg_quality: float | None
    """Quality (1 to 100) that the file's own quantisation table stands for; None for other formats."""
    blockiness: float
    """Mean step across the borders of 8x8 blocks over the mean step inside; 1 is none, nan where not measurable."""
    gradient_bits: bytes
    """Difference hash (Krawetz 2013), 512 bits: which of two neighbouring cells of a 16x16 grid is brighter."""
    thumbnail: bytes
    """Brightness of the 16x16 cells."""


def measure(path: Path, edge_px: int) -> Measures:
    """The figures of a readable image that is trained at about `edge_px`. Raises decoding.UnreadableImageError."""
    with open_image(path) as image:
        animated, exif_rotated = is_animated(image), is_exif_rotated(image)
        jpeg_quality = _jpeg_quality(image)
        full_size = image.size
        image.draft("RGB", _training_size(image.size, edge_px))
        has_alpha = image.has_transparency_data
        pixels = to_eight_bits(image).convert("RGBA" if has_alpha else "RGB")
    transparent = has_alpha and pixels.getchannel("A").getextrema() != (255, 255)
    if has_alpha:
        canvas = Image.new("RGB", pixels.size, "white")
        canvas.paste(pixels, mask=pixels.getchannel("A"))
        pixels = canvas
    luma = pixels.convert("L")
    blockiness = _blockiness(luma) if pixels.size == full_size else float("nan")
    trained = luma.resize(_training_size(luma.size, edge_px), Image.Resampling.BOX)
    levels = numpy.asarray(trained.histogram())
    darkest, brightest = percentiles(levels, (0.02, 0.98))
    cells_HWC = numpy.asarray(pixels.resize((64, 64), Image.Resampling.BOX), dtype=numpy.int16)
    edge = FINGERPRINT_EDGE
    wide = numpy.asarray(trained.resize((edge + 1, edge), Image.Resampling.BOX), dtype=numpy.int16)
    high = numpy.asarray(trained.resize((edge, edge + 1), Image.Resampling.BOX), dtype=numpy.int16)
    bits = [numpy.diff(wide, axis=1) > 0, numpy.diff(high, axis=0) > 0]
    return Measures(
        animated=animated,
        exif_rotated=exif_rotated,
        transparent=transparent,
        # JPEG's rounding of colours moves grey by a few levels.
        grey=bool((cells_HWC.max(axis=2) - cells_HWC.min(axis=2)).max() <= 6),
        darkest=darkest,
        brightest=brightest,
        sharpness=_sharpness(trained, levels),
        jpeg_quality=jpeg_quality,
        blockiness=blockiness,
        gradient_bits=numpy.packbits(numpy.concatenate([part.ravel() for part in bits])).tobytes(),
        thumbnail=trained.resize((FINGERPRINT_EDGE, FINGERPRINT_EDGE), Image.Resampling.BOX).tobytes(),
    )


def is_exif_rotated(image: Image.Image) -> bool:
    """Whether the opened file is shown turned or mirrored by its EXIF data."""
    return image.getexif().get(_ORIENTATION_TAG, 1) in range(2, 9)


def _training_size(size: tuple[int, int], edge_px: int) -> tuple[int, int]:
    """The size with the area edge_px squared, never enlarged."""
    scale = min(1.0, edge_px / (size[0] * size[1]) ** 0.5)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _jpeg_quality(image: Image.Image) -> float | None:
    """Quality in the sense of the Independent JPEG Group's scaling of the standard's table."""
    tables = getattr(image, "quantization", None)
    if image.format != "JPEG" or not tables:
        return None
    # libjpeg scales the standard's table by 200 - 2 q per cent from quality 50 on, by 5000 / q below: turned round.
    percent = 100 * sum(tables[min(tables)]) / _JPEG_LUMINANCE_SUM
    return 100 - percent / 2 if percent <= 100 else 5000 / percent


def _steps(luma: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Differences between neighbours, beside and below each other, in mode L."""
    # Cut out by numpy: Pillow's `crop` holds what is cut out of a large image for a decompression bomb.
    levels = numpy.asarray(luma)
    beside = ImageChops.difference(Image.fromarray(levels[:, :-1]), Image.fromarray(levels[:, 1:]))
    below = ImageChops.difference(Image.fromarray(levels[:-1]), Image.fromarray(levels[1:]))
    return beside, below


def percentiles(counts: numpy.ndarray, shares: Sequence[float]) -> tuple[float, ...]:
    """Levels below which these shares of the values lie, from how often each level occurs; as numpy.percentile does.

    Sorting a million values takes ten times as long as counting them.
    """
    up_to = numpy.cumsum(counts)
    found = []
    for share in shares:
        place = share * (up_to[-1] - 1)
        lower, upper = (int(numpy.searchsorted(up_to, index, side="right")) for index in (int(place), math.ceil(place)))
        found.append(lower + (upper - lower) * (place - int(place)))
    return tuple(found)


def _sharpness(luma: Image.Image, levels: numpy.ndarray) -> float:
    """The 99.8th percentile of steps between neighbours over the image's contrast; 1 for an image of one colour.

    levels: how often each brightness occurs.
    """
    low, high = percentiles(levels, (0.005, 0.995))
    if high - low < 8 or min(luma.size) < 3:
        return 1.0
    counts = sum(numpy.asarray(steps.histogram()) for steps in _steps(luma))
    return percentiles(numpy.asarray(counts), (0.998,))[0] / (high - low)


def _blockiness(luma: Image.Image) -> float:
    if min(luma.size) < 32:
        return float("nan")
    ratios = []
    for steps, axis in zip(_steps(luma), (0, 1), strict=True):
        means = numpy.asarray(steps).mean(axis=axis, dtype=numpy.float32)
        # Every eighth step lies between two blocks.
        border = means[7::8].mean()
        inside = numpy.delete(means, numpy.s_[7::8]).mean()
        ratios.append((border + 0.5) / (inside + 0.5))  # half a level: a flat image has no blocks
    # The smaller of both directions: a grid in the picture itself seldom runs both ways.
    return float(min(ratios))
