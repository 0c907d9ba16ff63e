"""Random masks for the training of inpainting models: boxes, brush strokes, and now and then the whole picture."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

_WHOLE = 0.25
"""Share of masks that cover everything, as in the training of Runway's sd-v1-5-inpainting."""
_MOST_BOXES, _MOST_STROKES, _MOST_CORNERS = 3, 4, 8


def draw_mask(width_px: int, height_px: int, generator: random.Random) -> Image.Image:
    """A mask in mode L, white where the picture is painted anew; never empty."""
    if generator.random() < _WHOLE:
        return Image.new("L", (width_px, height_px), 255)
    mask = Image.new("L", (width_px, height_px), 0)
    pen = ImageDraw.Draw(mask)
    if generator.random() < 0.5:
        for _ in range(generator.randint(1, _MOST_BOXES)):
            _draw_box(pen, width_px, height_px, generator)
    else:
        for _ in range(generator.randint(1, _MOST_STROKES)):
            _draw_stroke(pen, width_px, height_px, generator)
    return mask


def _draw_box(pen: ImageDraw.ImageDraw, width_px: int, height_px: int, generator: random.Random) -> None:
    box_width, box_height = (max(1, round(edge * generator.uniform(0.15, 0.6))) for edge in (width_px, height_px))
    left, top = generator.randint(0, width_px - box_width), generator.randint(0, height_px - box_height)
    pen.rectangle((left, top, left + box_width - 1, top + box_height - 1), fill=255)


def _draw_stroke(pen: ImageDraw.ImageDraw, width_px: int, height_px: int, generator: random.Random) -> None:
    """A line of several corners that wanders from a random place, with round ends."""
    edge = min(width_px, height_px)
    thickness = max(2, round(edge * generator.uniform(0.05, 0.2)))
    x, y = generator.uniform(0, width_px), generator.uniform(0, height_px)
    corners = [(x, y)]
    angle = generator.uniform(0, math.tau)
    for _ in range(generator.randint(1, _MOST_CORNERS)):
        angle += generator.uniform(-1.0, 1.0) * math.pi / 2
        length = edge * generator.uniform(0.1, 0.4)
        x = min(max(0.0, x + length * math.cos(angle)), width_px - 1.0)
        y = min(max(0.0, y + length * math.sin(angle)), height_px - 1.0)
        corners.append((x, y))
    pen.line(corners, fill=255, width=thickness, joint="curve")
    for x, y in corners:
        half = thickness / 2
        pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
