"""A canvas with smooth lines and fills, and the small path language that the pictures are written in.

A path is a string of commands, each a letter followed by numbers; x grows to the right, y downwards:

    M x y                    start a new line at a point
    L x y ...                straight on to one or more points
    Q cx cy x y ...          quadratic Bezier curve
    C ax ay bx by x y ...    cubic Bezier curve
    Z                        close the line
    E x y rx ry              a whole ellipse around (x, y)
    A x y rx ry from to      part of an ellipse, in degrees clockwise from three o'clock
    R x y width height r     a rectangle with rounded corners
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from PIL import Image, ImageDraw

Point = tuple[float, float]
Line = list[Point]
SUPERSAMPLING = 4
_TOKEN = re.compile(r"[A-Z]|-?[\d.]+")
_CURVE_STEPS = 24
_ARGUMENTS = {"M": 2, "L": 2, "Q": 4, "C": 6, "Z": 0, "E": 4, "A": 6, "R": 5}


class Canvas:
    """A square picture of `size_px`, drawn four times as large and averaged at the end."""

    def __init__(self, size_px: int, background: str, units: float = 100.0) -> None:
        """units: the length of an edge in the coordinates that paths use."""
        edge = size_px * SUPERSAMPLING
        self._image = Image.new("RGB", (edge, edge), background)
        self._draw = ImageDraw.Draw(self._image)
        self._size_px = size_px
        self._scale = edge / units
        self._origin = complex(0, 0)
        self._turn = complex(1, 0)

    @contextmanager
    def placed(self, x: float, y: float, scale: float = 1.0, degrees: float = 0.0) -> Iterator[None]:
        """Inside the block paths start from (x, y), are scaled, and turned clockwise."""
        before = self._origin, self._turn
        turn = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
        self._origin, self._turn = self._origin + self._turn * complex(x, y), self._turn * turn * scale
        try:
            yield
        finally:
            self._origin, self._turn = before

    def fill(self, path: str, colour: str) -> None:
        """Fill each line of the path as a closed shape."""
        for line in parse(path):
            points = [self._device(point) for point in line]
            if len(points) > 2:
                self._draw.polygon(points, fill=colour)

    def stroke(self, path: str, colour: str, width: float) -> None:
        """Draw the path's lines with round ends and corners; width in units of the path."""
        radius = width * abs(self._turn) * self._scale / 2
        for line in parse(path):
            points = [self._device(point) for point in line]
            for start, end in pairwise(points):
                self._segment(start, end, radius, colour)
            for x, y in points:
                self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def finished(self) -> Image.Image:
        """The picture at its final size."""
        return self._image.resize((self._size_px, self._size_px), Image.Resampling.BOX)

    def _device(self, point: Point) -> Point:
        place = (self._origin + self._turn * complex(*point)) * self._scale
        return place.real, place.imag

    def _segment(self, start: Point, end: Point, radius: float, colour: str) -> None:
        across_x, across_y = end[1] - start[1], start[0] - end[0]
        length = math.hypot(across_x, across_y)
        if length == 0:
            return
        dx, dy = across_x / length * radius, across_y / length * radius
        corners = [(start[0] + dx, start[1] + dy), (end[0] + dx, end[1] + dy)]
        corners += [(end[0] - dx, end[1] - dy), (start[0] - dx, start[1] - dy)]
        self._draw.polygon(corners, fill=colour)


def parse(path: str) -> list[Line]:
    """The path's lines as points. Raises ValueError for an unknown command or missing numbers."""
    lines: list[Line] = []
    for command, numbers in _commands(path):
        if command == "M":
            lines.append([(numbers[0], numbers[1])])
        elif command == "Z":
            lines[-1].append(lines[-1][0])
        elif command in "LQC":
            lines[-1] += _curve([lines[-1][-1], *zip(numbers[::2], numbers[1::2], strict=True)])
        elif command == "R":
            lines.append(_rounded_rectangle(*numbers))
        else:
            x, y, rx, ry, *part = numbers
            start, end = part or (0.0, 360.0)
            lines.append(_arc(x, y, rx, ry, start, end))
    return lines


def _commands(path: str) -> Iterator[tuple[str, list[float]]]:
    for part in re.findall(r"[A-Z][^A-Z]*", path):
        command, numbers = part[0], [float(token) for token in _TOKEN.findall(part[1:])]
        size = _ARGUMENTS.get(command)
        if size is None or (len(numbers) != size if size == 0 else not numbers or len(numbers) % size):
            raise ValueError(f"'{part.strip()}' is not a path command; {command} takes {size} numbers")
        for start in range(0, max(len(numbers), 1), size or 1):
            yield command, numbers[start : start + size]


def _curve(points: Line) -> Line:
    """Points of a Bezier curve of any degree, its first point left out."""
    if len(points) == 2:
        return [points[1]]
    degree = len(points) - 1
    weights = [math.comb(degree, index) for index in range(degree + 1)]
    curve = []
    for step in range(1, _CURVE_STEPS + 1):
        t = step / _CURVE_STEPS
        shares = [weight * t**index * (1 - t) ** (degree - index) for index, weight in enumerate(weights)]
        weighted = list(zip(shares, points, strict=True))
        curve.append((sum(share * x for share, (x, _) in weighted), sum(share * y for share, (_, y) in weighted)))
    return curve


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Line:
    steps = max(2, round(abs(end - start) / 4))
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def _rounded_rectangle(x: float, y: float, width: float, height: float, radius: float) -> Line:
    right, bottom = x + width - radius, y + height - radius
    corners = [(right, y + radius, -90), (right, bottom, 0), (x + radius, bottom, 90), (x + radius, y + radius, 180)]
    line = [point for cx, cy, start in corners for point in _arc(cx, cy, radius, radius, start, start + 90)]
    return [*line, line[0]]
