"""The marks that coloured pictures are made of, and the colours that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.sample_images.canvas import Canvas

INK, WHITE, RED = "#27324a", "#ffffff", "#e8505b"
LEAF, YELLOW, VIOLET = "#4fae3d", "#ffd23f", "#6c5ce7"
OUTLINE = 1.5
"""Usual line width, in the units of the path."""


class Mark(NamedTuple):
    """A path with the colour inside and the colour and width of its line; None leaves that out."""

    path: str
    inside: str | None
    line: str | None = None
    width: float = OUTLINE


Marks = Sequence[Mark]


def inked(path: str, inside: str) -> Mark:
    """A filled shape with the usual outline."""
    return Mark(path, inside, INK)


def line(path: str, colour: str = INK, width: float = OUTLINE) -> Mark:
    """A line alone."""
    return Mark(path, None, colour, width)


def paint(canvas: Canvas, marks: Marks) -> None:
    """Draw the marks in their order."""
    for path, inside, line_colour, width in marks:
        if inside:
            canvas.fill(path, inside)
        if line_colour:
            canvas.stroke(path, line_colour, width)
