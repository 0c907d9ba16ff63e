"""The picture sets of the learning benchmark: the two that come with the package, and four more drawn here.

Styles draw the objects of `blueprint` anew: `ink` with thick black lines on paper, `pixel` as icons of 32 x 32 cells,
`pastel` as soft shapes without lines on a gradient. `robot` is a second character in the mascot's scenes. Every fourth
picture of a set, in the order of names, is held out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from PIL import Image, ImageFilter

from tests.sample_images import blueprint, mascot
from tests.sample_images.canvas import Canvas
from tests.sample_images.marks import INK, WHITE, Mark, Marks, inked, line, paint
from tests.sample_images.props import BEFORE_THE_BODY, BEHIND_THE_BODY
from tests.sample_images.scenes import SCENES

SIZE_PX = 256
"""Twice what the embedded base model trains at."""
TRIGGERS = {
    "blueprint": "blueprint style",
    "mascot": "sdl-mascot",
    "ink": "thick ink style",
    "pixel": "pixel icon style",
    "pastel": "pastel mist style",
    "robot": "sdl-robot",
}
CHOOSING = ("blueprint", "mascot", "ink", "pixel")
"""Recipes are chosen on these."""
REPORTED = ("pastel", "robot")
"""And reported on these, which nothing was chosen on."""
_EVERY = 4
_COLOURS = ("#e4572e", "#2e86ab", "#f3a712", "#5b8c5a", "#a23b72", "#6c5ce7", "#d7816a", "#17a398")
_PASTELS = ("#f6b8c1", "#b8e0d2", "#c7ceea", "#ffdac1", "#e2c6f0", "#b5d6f2", "#f7e3a1", "#c9e4a8")
_STEEL, _DARK, _LAMP = "#9fb3c8", "#5d7186", "#ff5d5d"


def prepare(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a set below `folder` unless it is there; returns the folders of what is trained and what is held out."""
    places = folder / name / "trained", folder / name / "held_out"
    if all(place.is_dir() for place in places):
        return places
    pictures = sorted(_pictures(name).items())
    for index, (stem, (draw, text)) in enumerate(pictures):
        place = places[index % _EVERY == _EVERY - 1]
        place.mkdir(parents=True, exist_ok=True)
        draw().save(place / f"{stem}.png")
        (place / f"{stem}.txt").write_text(f"{text}\n", encoding="utf-8")
    return places


def clear(folder: Path) -> None:
    """Take all sets away, to be drawn anew."""
    shutil.rmtree(folder, ignore_errors=True)


def _pictures(name: str) -> dict[str, tuple[Callable[[], Image.Image], str]]:
    """What a set consists of: how each picture is drawn, and its caption."""
    trigger = TRIGGERS[name]
    if name == "mascot":
        return {pose: (lambda pose=pose: mascot.draw(pose), mascot.caption(pose)) for pose in mascot.POSES}
    if name == "robot":
        return {
            pose: (lambda pose=pose: _robot(pose), f"{trigger}, {mascot.POSES[pose].description}")
            for pose in mascot.POSES
        }
    draw = {"blueprint": blueprint.draw, "ink": _ink, "pixel": _pixel, "pastel": _pastel}[name]
    return {
        thing.split(" ", 1)[1].replace(" ", "-"): (lambda thing=thing: draw(thing), f"{thing}, {trigger}")
        for thing in blueprint.OBJECTS
    }


def _colour(thing: str, index: int, colours: tuple[str, ...]) -> str:
    return colours[(crc32(thing.encode()) + index) % len(colours)]


def _ink(thing: str) -> Image.Image:
    """Black lines thrice as thick as blueprint's, shapes in the paper's colour."""
    canvas = Canvas(SIZE_PX, "#f4ecd8")
    with canvas.placed(10, 10, 0.8):
        for kind, path in blueprint.OBJECTS[thing]:
            if kind in ("outline", "hole"):
                canvas.fill(path, "#fffaf0")
            if kind == "solid":
                canvas.fill(path, "#141414")
            canvas.stroke(path, "#141414", 3.4 if kind == "fine" else 6.0)
    return canvas.finished()


def _pixel(thing: str) -> Image.Image:
    """Flat colours and dark lines in cells of 8 pixels, without smoothing."""
    canvas = Canvas(32, "#1f2440")
    with canvas.placed(8, 8, 0.84):
        for index, (kind, path) in enumerate(blueprint.OBJECTS[thing]):
            if kind in ("outline", "solid"):
                canvas.fill(path, _colour(thing, index, _COLOURS))
            if kind == "hole":
                canvas.fill(path, "#1f2440")
            canvas.stroke(path, "#f5f3e7" if kind in ("line", "fine") else "#0c0e1a", 3.2)
    small = canvas.finished().quantize(12, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    return small.resize((SIZE_PX, SIZE_PX), Image.Resampling.NEAREST)


def _pastel(thing: str) -> Image.Image:
    """Soft shapes on a vertical gradient, blurred a little."""
    top, bottom = (Image.new("RGB", (SIZE_PX, SIZE_PX), colour) for colour in ("#fdf3f7", "#cfe4f5"))
    slope = Image.linear_gradient("L").resize((SIZE_PX, SIZE_PX))
    canvas, shape = Canvas(SIZE_PX, "#000000"), Canvas(SIZE_PX, "#000000")
    for target, is_shape in ((canvas, False), (shape, True)):
        with target.placed(10, 10, 0.8):
            for index, (kind, path) in enumerate(blueprint.OBJECTS[thing]):
                colour = "#ffffff" if is_shape else _colour(thing, index, _PASTELS)
                if kind in ("outline", "solid", "hole"):
                    target.fill(path, colour)
                else:
                    target.stroke(path, colour, 3.0)
    blur = ImageFilter.GaussianBlur(SIZE_PX / 128)
    mask = shape.finished().convert("L").filter(blur)
    return Image.composite(canvas.finished().filter(blur), Image.composite(bottom, top, slope), mask)


def _robot(pose_name: str) -> Image.Image:
    """The second character: a steel box with an antenna and a screen for a face, where the mascot would be."""
    pose = mascot.POSES[pose_name]
    background, scene = SCENES[pose.scene]
    canvas = Canvas(SIZE_PX, background)
    paint(canvas, scene)
    with canvas.placed(*pose.at, pose.scale, pose.lean):
        for marks in (BEHIND_THE_BODY.get(pose.item, []), _arms(pose.left, -1), _arms(pose.right, 1), _BODY):
            paint(canvas, marks)
        paint(canvas, mascot.EYES[pose.eyes])
        paint(canvas, mascot.MOUTHS[pose.mouth])
        paint(canvas, BEFORE_THE_BODY.get(pose.item, []))
    return canvas.finished()


def _arms(where: str, side: int) -> Marks:
    ends = {"down": (34, 26), "up": (38, -16), "out": (42, 10), "hip": (36, 22), "front": (20, 24)}
    x, y = ends[where]
    path = f"M{side * 24} 12 L{side * x} {y}"
    return [line(path, INK, 8), line(path, _DARK, 5), inked(f"E{side * x} {y} 4 4", _LAMP)]


_BODY: Marks = [
    line("M0 -30 L0 -42", INK, 2.4),
    inked("E0 -44 4 4", _LAMP),
    inked("R-20 26 14 10 2", _DARK),
    inked("R6 26 14 10 2", _DARK),
    inked("R-26 -30 52 58 6", _STEEL),
    inked("R-21 -25 42 28 4", "#e9f3fb"),
    inked("R-16 10 32 12 2", _DARK),
    Mark("E-9 16 2.6 2.6", _LAMP),
    Mark("E0 16 2.6 2.6", "#ffd23f"),
    Mark("E9 16 2.6 2.6", WHITE),
]
