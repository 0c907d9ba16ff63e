"""A style: white line drawings of everyday objects on blueprint blue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from tests.sample_images.canvas import Canvas

SIZE_PX = 512
_BLUE, _WHITE = (23, 78, 158), (255, 255, 255)
_SHADES = 16
_BOLD, _FINE = 2.1, 1.25
"""Line widths in hundredths of the picture's edge."""


_ZOOM = 0.84
_TURNS = {"a guitar": 32, "a rocket": 28}
"""Degrees clockwise that an object is turned."""
_FILLS = {"outline": 2, "hole": 0, "solid": _SHADES - 1}
"""Shade inside a path; the others are lines only."""


class Stroke(NamedTuple):
    """One path and how it is drawn: outlines and holes hide what lies behind them."""

    kind: str
    path: str


def _outline(path: str) -> Stroke:
    return Stroke("outline", path)


def _hole(path: str) -> Stroke:
    return Stroke("hole", path)


def _line(path: str) -> Stroke:
    return Stroke("line", path)


def _fine(path: str) -> Stroke:
    return Stroke("fine", path)


def _solid(path: str) -> Stroke:
    return Stroke("solid", path)


OBJECTS: dict[str, Sequence[Stroke]] = {
    "a teapot": [
        _line("M74 46 C95 36 98 70 72 72"),
        _outline("M28 66 C18 62 19 48 9 41 L17 35 C27 40 27 48 33 51 Z"),
        _outline("M51 36 C78 36 82 56 76 70 C72 80 66 84 51 84 C36 84 30 80 26 70 C20 56 24 36 51 36 Z"),
        _outline("M35 37 Q36 27 51 27 Q66 27 67 37 Q51 42 35 37 Z"),
        _outline("E51 22 5 5"),
        _fine("M27 57 Q51 66 76 57"),
        _fine("M26 63 Q51 72 76 63"),
        _line("M36 84 L66 84"),
    ],
    "a cup": [
        _line("M68 46 C90 38 92 72 64 70"),
        _outline("M20 36 L24 68 Q26 82 40 82 L52 82 Q66 82 68 68 L72 36 Z"),
        _outline("E46 36 26 7"),
        _fine("A46 38 18 4 200 340"),
        _outline("M14 84 L80 84 Q74 91 64 91 L30 91 Q20 91 14 84 Z"),
        _fine("M36 25 C30 19 42 15 36 8"),
        _fine("M47 25 C41 19 53 15 47 8"),
        _fine("M58 25 C52 19 64 15 58 8"),
    ],
    "a house": [
        _outline("M66 18 L76 18 L76 38 L66 30 Z"),
        _outline("M20 46 L20 86 L80 86 L80 46 L50 18 Z"),
        _outline("M50 12 L92 50 L86 56 L50 24 L14 56 L8 50 Z"),
        _outline("M43 86 L43 66 Q43 58 50 58 Q57 58 57 66 L57 86 Z"),
        _solid("E54 74 1.2 1.2"),
        _outline("R26 60 11 12 1"),
        _fine("M31.5 60 L31.5 72 M26 66 L37 66"),
        _outline("R63 60 11 12 1"),
        _fine("M68.5 60 L68.5 72 M63 66 L74 66"),
        _outline("E50 41 5.5 5.5"),
        _fine("M44.5 41 L55.5 41 M50 35.5 L50 46.5"),
        _line("M8 86 L92 86"),
    ],
    "a key": [
        _outline("M44 44 L84 84 L84 92 L74 92 L74 85 L67 85 L67 78 L60 78 L60 70 L36 52 Z"),
        _outline("E31 31 22 22"),
        _hole("E26 26 7 7"),
        _fine("A31 31 15 15 20 75"),
        _fine("M47 51 L79 83"),
    ],
    "a tree": [
        _outline("M44 60 L43 80 Q42 86 34 88 L66 88 Q58 86 57 80 L56 60 Z"),
        _outline(
            "M50 8 C62 6 70 14 70 22 C82 22 88 34 82 43 C88 52 80 64 68 62 C62 69 54 68 50 64 "
            "C46 68 38 69 32 62 C20 64 12 52 18 43 C12 34 18 22 30 22 C30 14 38 6 50 8 Z"
        ),
        _fine("M50 76 L50 50 M50 60 L62 48 M50 56 L38 44"),
        _fine("A32 32 6 6 180 280 M64 26 Q70 28 71 34 M24 50 Q28 55 34 54 M66 54 Q72 53 74 48"),
        _line("M16 88 L84 88"),
    ],
    "a car": [
        _outline("M26 46 L36 28 Q38 25 42 25 L62 25 Q66 25 69 28 L82 46 Z"),
        _outline("M32 45 L40 31 L50 31 L50 45 Z"),
        _outline("M54 45 L54 31 L63 31 L75 45 Z"),
        _outline("M10 72 Q6 72 6 66 L7 55 Q8 49 15 48 L26 45 L82 45 Q94 47 94 58 L94 68 Q94 72 90 72 Z"),
        _outline("E28 72 12 12"),
        _outline("E28 72 5 5"),
        _outline("E74 72 12 12"),
        _outline("E74 72 5 5"),
        _fine("M52 48 L52 68 M56 53 L63 53 M34 53 L41 53"),
        _solid("E89 55 3 3.6"),
        _solid("R6 54 4 6 1.5"),
        _line("M4 85 L96 85"),
    ],
    "an umbrella": [
        _line("M50 50 L50 80 C50 94 30 94 30 81"),
        _outline(
            "M50 14 C74 14 92 32 92 54 Q85 46 78 54 Q71 46 64 54 Q57 46 50 54 Q43 46 36 54 Q29 46 22 54 Q15 46 8 54 "
            "C8 32 26 14 50 14 Z"
        ),
        _fine(
            "M50 14 C38 24 36 40 36 54 M50 14 C62 24 64 40 64 54 M50 14 C30 20 22 36 22 54 M50 14 C70 20 78 36 78 54"
        ),
        _line("M50 8 L50 14"),
    ],
    "an apple": [
        _outline(
            "M50 32 C58 24 78 22 84 40 C90 60 76 92 60 90 C54 89 54 87 50 87 C46 87 46 89 40 90 C24 92 10 60 16 40 "
            "C22 22 42 24 50 32 Z"
        ),
        _line("M50 32 C49 24 50 18 55 10"),
        _outline("M53 22 C58 8 74 8 80 12 C76 24 62 28 53 22 Z"),
        _fine("M56 21 Q66 19 75 14"),
        _fine("M25 44 C24 54 27 64 32 72"),
        _fine("M42 34 Q50 40 58 34"),
    ],
    "a fish": [
        _outline("M38 32 C46 14 62 16 70 24 L64 36 Z"),
        _outline("M44 66 C48 80 58 80 64 76 L58 64 Z"),
        _outline("M70 50 L94 28 Q88 50 94 72 Z"),
        _outline("M6 52 C18 28 56 22 78 50 C56 78 18 76 6 52 Z"),
        _fine("M30 34 C40 44 40 60 30 69"),
        _solid("E21 47 3.4 3.4"),
        _fine("M9 56 Q14 58 17 56"),
        _fine("A44 43 5 5 -70 70 A55 43 5 5 -70 70 A44 57 5 5 -70 70 A55 57 5 5 -70 70"),
        _fine("A65 50 5 5 -70 70 M80 44 L88 38 M80 50 L88 50 M80 56 L88 62"),
    ],
    "a star": [
        _outline("M50 8 L62 36 L93 39 L69 59 L77 90 L50 73 L23 90 L31 59 L7 39 L38 36 Z"),
        _fine("M50 8 L50 54 M93 39 L50 54 M77 90 L50 54 M23 90 L50 54 M7 39 L50 54"),
        _fine("M62 36 L50 54 M69 59 L50 54 M50 73 L50 54 M31 59 L50 54 M38 36 L50 54"),
    ],
    "an alarm clock": [
        _line("M30 80 L22 92 M70 80 L78 92"),
        _outline("M16 38 C8 24 24 8 38 16 Z"),
        _outline("M84 38 C92 24 76 8 62 16 Z"),
        _line("M50 20 L50 13 M44 12 L56 12"),
        _outline("E50 54 35 35"),
        _outline("E50 54 28 28"),
        _fine("M50 29 L50 33 M50 75 L50 79 M25 54 L29 54 M71 54 L75 54"),
        _line("M50 36 L50 54 L64 61"),
        _solid("E50 54 2.6 2.6"),
    ],
    "a camera": [
        _outline("M34 30 L40 18 L60 18 L66 30 Z"),
        _outline("R16 22 12 8 2"),
        _outline("R8 28 84 54 6"),
        _fine("M8 42 L92 42 M8 72 L92 72"),
        _outline("E50 56 22 22"),
        _outline("E50 56 15 15"),
        _outline("E50 56 8 8"),
        _fine("A50 56 11.5 11.5 190 250"),
        _solid("R74 32 11 6 1.5"),
        _solid("E18 36 2.4 2.4"),
    ],
    "a bell": [
        _outline("E50 82 8 8"),
        _outline("E50 13 5.5 5.5"),
        _outline("M50 18 C72 18 74 38 75 52 C76 64 80 68 88 76 L12 76 C20 68 24 64 25 52 C26 38 28 18 50 18 Z"),
        _line("M8 76 L92 76"),
        _fine("M24 60 L76 60 M22 66 L78 66"),
        _fine("M36 52 C36 40 38 32 44 28"),
        _fine("A50 40 46 30 155 195 A50 40 46 30 -15 25"),
    ],
    "a sailboat": [
        _line("M48 8 L48 72"),
        _outline("M52 12 C66 26 78 46 82 64 L52 64 Z"),
        _outline("M44 20 C36 34 26 50 14 64 L44 64 Z"),
        _outline("M8 71 L92 71 C88 82 80 88 70 88 L28 88 C18 88 12 82 8 71 Z"),
        _fine("M52 40 L70 40 M52 52 L77 52 M44 44 L30 44 M44 54 L22 54"),
        _fine("M14 78 L86 78"),
        _outline("M48 6 L60 9 L48 13 Z"),
        _fine("M6 95 Q14 90 22 95 Q30 99 38 95 Q46 90 54 95 Q62 99 70 95 Q78 90 86 95 Q90 97 94 96"),
    ],
    "a balloon": [
        _fine("M50 74 C44 80 56 84 50 90 C46 94 50 96 52 98"),
        _outline("M50 6 C72 6 80 24 78 38 C76 54 62 64 50 68 C38 64 24 54 22 38 C20 24 28 6 50 6 Z"),
        _outline("M50 67 L57 75 L43 75 Z"),
        _fine("M31 36 C29 26 34 18 42 14"),
        _fine("M66 52 Q70 47 71 40"),
    ],
    "a mushroom": [
        _outline("M38 52 C40 66 38 76 32 86 Q50 94 68 86 C62 76 60 66 62 52 Z"),
        _outline("M8 54 C8 26 28 10 50 10 C72 10 92 26 92 54 C92 60 84 60 76 58 Q50 52 24 58 C16 60 8 60 8 54 Z"),
        _outline("E50 28 9 8"),
        _outline("E26 40 6 7"),
        _outline("E74 40 6 7"),
        _fine("M42 58 L43 72 M50 57 L50 76 M58 58 L57 72"),
        _fine("M22 88 Q20 82 16 80 M28 90 Q28 84 26 80 M72 90 Q74 84 78 82"),
        _line("M14 90 L86 90"),
    ],
    "a rocket": [
        _outline("M44 76 Q42 88 50 97 Q58 88 56 76 Z"),
        _outline("M34 52 Q18 60 18 80 L36 72 Z"),
        _outline("M66 52 Q82 60 82 80 L64 72 Z"),
        _outline("M50 4 C66 18 72 42 64 76 L36 76 C28 42 34 18 50 4 Z"),
        _outline("E50 40 9 9"),
        _outline("E50 40 5 5"),
        _fine("M37 24 Q50 30 63 24 M34 62 L66 62 M35 68 L65 68"),
        _fine("M50 80 L50 88 M28 88 L28 94 M72 88 L72 94"),
    ],
    "a pair of scissors": [
        _outline("M26 8 C20 18 24 28 30 36 L56 66 L63 60 Z"),
        _outline("M74 8 C80 18 76 28 70 36 L44 66 L37 60 Z"),
        _outline("E30 76 15 15"),
        _hole("E30 76 8 8"),
        _outline("E70 76 15 15"),
        _hole("E70 76 8 8"),
        _solid("E50 54 3 3"),
        _fine("M31 20 L46 42 M69 20 L54 42"),
    ],
    "a guitar": [
        _outline(
            "M50 44 C59 39 70 43 70 52 C70 58 66 60 67 65 C69 71 76 73 76 81 C76 93 64 98 50 98 C36 98 24 93 24 81 "
            "C24 73 31 71 33 65 C34 60 30 58 30 52 C30 43 41 39 50 44 Z"
        ),
        _hole("E50 64 9 9"),
        _outline("R46 10 8 46 1"),
        _outline("M43 -4 L57 -4 L59 12 L41 12 Z"),
        _fine("M48.4 12 L48.4 84 M51.6 12 L51.6 84 M46 22 L54 22 M46 31 L54 31 M46 40 L54 40"),
        _outline("R39 83 22 5 2"),
        _solid("E38 -1 1.6 1.6 E37 7 1.6 1.6 E62 -1 1.6 1.6 E63 7 1.6 1.6"),
    ],
    "a light bulb": [
        _outline("M38 66 C36 56 22 50 22 34 C22 18 34 8 50 8 C66 8 78 18 78 34 C78 50 64 56 62 66 Z"),
        _fine("M44 66 L40 42 L46 48 L50 40 L54 48 L60 42 L56 66"),
        _outline("R37 66 26 7 3"),
        _outline("R38 73 24 7 3"),
        _outline("R40 80 20 6 3"),
        _solid("M44 86 L56 86 L53 91 L47 91 Z"),
        _fine("M30 34 C30 26 34 20 40 17"),
        _fine("M8 34 L14 34 M86 34 L92 34 M14 12 L19 16 M86 12 L81 16 M14 56 L19 52 M86 56 L81 52"),
    ],
    "a top hat": [
        _outline("M6 72 Q10 64 24 66 L76 66 Q90 64 94 72 Q92 84 50 84 Q8 84 6 72 Z"),
        _outline("M26 70 Q30 40 22 18 Q50 10 78 18 Q70 40 74 70 Q50 77 26 70 Z"),
        _outline("M27 56 Q50 63 73 56 L74 68 Q50 76 26 68 Z"),
        _outline("E50 19 28 6"),
        _fine("M36 32 Q37 42 36 52"),
        _solid("R46 58.5 8 9 1"),
    ],
    "a flower": [
        _line("M50 46 C50 64 48 76 50 94"),
        _outline("M50 84 C36 86 26 78 22 64 C38 62 48 70 50 84 Z"),
        _outline("M50 78 C52 64 64 58 78 60 C76 74 64 82 50 78 Z"),
        _fine("M49 83 Q38 78 30 70 M52 77 Q62 74 70 65"),
        _outline("E50 12 11 11"),
        _outline("E68.2 22.5 11 11"),
        _outline("E68.2 43.5 11 11"),
        _outline("E50 54 11 11"),
        _outline("E31.8 43.5 11 11"),
        _outline("E31.8 22.5 11 11"),
        _outline("E50 33 13 13"),
        _fine("A50 33 8 8 200 290"),
    ],
    "an open book": [
        _outline("M8 26 L8 82 L46 82 Q50 86 54 82 L92 82 L92 26 Z"),
        _outline("M50 28 C40 18 24 16 13 20 L13 76 C24 72 40 74 50 82 Z"),
        _outline("M50 28 C60 18 76 16 87 20 L87 76 C76 72 60 74 50 82 Z"),
        _fine("M20 31 Q32 29 43 36 M20 41 Q32 39 43 46 M20 51 Q32 49 43 56 M20 61 Q32 59 43 66"),
        _fine("M80 31 Q68 29 57 36 M80 41 Q68 39 57 46 M80 51 Q68 49 57 56 M80 61 Q68 59 57 66"),
    ],
    "a bicycle": [
        _line("E22 64 20 20"),
        _line("E78 64 20 20"),
        _fine("M22 44 L22 84 M2 64 L42 64 M8 50 L36 78 M8 78 L36 50"),
        _fine("M78 44 L78 84 M58 64 L98 64 M64 50 L92 78 M64 78 L92 50"),
        _line("M22 64 L39 36 L66 36 L48 64 Z"),
        _line("M48 64 L36 27 M78 64 L64 26 Q63 20 70 19 L77 21"),
        _solid("M27 25 Q36 21 45 26 L37 29 Z"),
        _outline("E48 64 5 5"),
        _line("M48 64 L54 75 M50 77 L58 74"),
        _solid("E22 64 2.4 2.4 E78 64 2.4 2.4"),
        _line("M4 87 L96 87"),
    ],
}


def draw(name: str) -> Image.Image:
    """One of OBJECTS as a palette image of 16 shades from blue to white."""
    canvas = Canvas(SIZE_PX, _shade(0))
    _draw_grid(canvas)
    with canvas.placed(50, 50, _ZOOM, _TURNS.get(name, 0)), canvas.placed(-50, -50):
        for kind, path in OBJECTS[name]:
            if kind in _FILLS:
                canvas.fill(path, _shade(_FILLS[kind]))
            canvas.stroke(path, _shade(_SHADES - 1), (_FINE if kind == "fine" else _BOLD) / _ZOOM)
    return _in_shades(canvas.finished())


def caption(name: str) -> str:
    """The caption of an object's picture."""
    return f"{name}, blueprint style"


def _draw_grid(canvas: Canvas) -> None:
    for index in range(1, 16):
        at = index * 6.25
        canvas.stroke(f"M{at} 0 L{at} 100 M0 {at} L100 {at}", _shade(3 if index % 4 == 0 else 1), 0.3)


def _shade(level: int) -> str:
    mixed = (round(blue + (white - blue) * level / (_SHADES - 1)) for blue, white in zip(_BLUE, _WHITE, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _in_shades(image: Image.Image) -> Image.Image:
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(_shade(level)[i : i + 2], 16) for level in range(_SHADES) for i in (1, 3, 5)])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)
