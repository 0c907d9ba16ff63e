"""A character: an invented mascot, mint green with a sprout on its head and an orange scarf, in poses and scenes."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from tests.sample_images.canvas import Canvas
from tests.sample_images.marks import INK, LEAF, WHITE, Mark, Marks, inked, line, paint
from tests.sample_images.props import BEFORE_THE_BODY, BEHIND_THE_BODY
from tests.sample_images.scenes import SCENES

SIZE_PX = 512
TRIGGER = "sdl-mascot"
_COLOURS = 48
_MINT, _SHADE, _CREAM, _PINK = "#7fdcb5", "#5cc39a", "#fff4d6", "#ff9fa8"
_SCARF, _STRIPE = "#ff8a3c", "#ffd166"


def _limb(path: str) -> Marks:
    return [line(path, INK, 9), line(path, _MINT, 6)]


BACK: Marks = [
    inked("E-11 30 9 5", _SHADE),
    inked("E11 30 9 5", _SHADE),
    line("M0 -29 Q2 -35 0 -40", INK, 3),
    line("M0 -29 Q2 -35 0 -40", LEAF, 1.2),
    inked("M0 -39 C-2 -49 -12 -52 -19 -48 C-17 -39 -9 -35 0 -39 Z", LEAF),
    inked("M0 -39 C1 -46 8 -50 15 -48 C15 -40 8 -36 0 -39 Z", LEAF),
    line("M-4 -41 Q-9 -45 -13 -45.5 M4 -41 Q8 -44 11 -45", "#2f7d2a", 0.9),
    inked("E-18 -24 7 7", _MINT),
    inked("E18 -24 7 7", _MINT),
    Mark("E-18.5 -24.5 3.4 3.4 E18.5 -24.5 3.4 3.4", _PINK),
]
BODY: Marks = [
    Mark("M0 -31 C18 -31 26 -15 27 4 C28 22 17 31 0 31 C-17 31 -28 22 -27 4 C-26 -15 -18 -31 0 -31 Z", _MINT),
    Mark("M22 -14 C28 6 26 24 8 30 C22 28 28 20 27 4 Q26 -8 22 -14 Z", _SHADE),
    Mark("M-16 22 C-16 12 16 12 16 22 C15 29 8 30.6 0 30.6 C-8 30.6 -15 29 -16 22 Z", _CREAM),
    line("M0 -31 C18 -31 26 -15 27 4 C28 22 17 31 0 31 C-17 31 -28 22 -27 4 C-26 -15 -18 -31 0 -31 Z"),
    Mark("E-17 -2.5 3.8 2.6 E17 -2.5 3.8 2.6", _PINK),
]
SCARF: Marks = [
    inked("M9 12 L19 10 L22 25 L12 27 Z", _SCARF),
    line("M11.6 21.5 L20 20", _STRIPE, 1.8),
    inked("M-26.8 3 Q0 13 26.8 3 Q28 7 26.6 10.5 Q0 20 -26.6 10.5 Q-28 7 -26.8 3 Z", _SCARF),
    line("M-17 7.2 L-17.6 12.6 M-6 9.4 L-6.2 14.8 M6 9.4 L6.2 14.8 M17 7.2 L17.6 12.6", _STRIPE, 1.8),
]

_ROUND_EYES = [Mark("E-9.5 -10 3.5 4.6 E9.5 -10 3.5 4.6", INK), Mark("E-8.3 -12 1.3 1.5 E10.7 -12 1.3 1.5", WHITE)]
EYES: dict[str, Marks] = {
    "open": _ROUND_EYES,
    "happy": [line("M-13.5 -8.5 Q-9.5 -14.5 -5.5 -8.5 M5.5 -8.5 Q9.5 -14.5 13.5 -8.5", INK, 2.1)],
    "closed": [line("M-13.5 -10 Q-9.5 -5.5 -5.5 -10 M5.5 -10 Q9.5 -5.5 13.5 -10", INK, 2.1)],
    "wink": [
        Mark("E-9.5 -10 3.5 4.6", INK),
        Mark("E-8.3 -12 1.3 1.5", WHITE),
        line("M13.5 -13 L6 -10 L13.5 -7.5", INK, 2.1),
    ],
    "wide": [
        inked("E-10 -11 6 6.6 E10 -11 6 6.6", WHITE),
        Mark("E-10 -11 2.6 3 E10 -11 2.6 3", INK),
    ],
    "sad": [*_ROUND_EYES, line("M-14.5 -15 Q-10 -19 -6 -18.5 M14.5 -15 Q10 -19 6 -18.5", INK, 1.8)],
    "down": [
        Mark("E-8.5 -8.5 3.6 4.2 E8.5 -8.5 3.6 4.2", INK),
        Mark("E-7.6 -6.6 1.4 1.4 E9.4 -6.6 1.4 1.4", WHITE),
        line("M-13.5 -15 Q-9 -17.5 -5 -16 M13.5 -15 Q9 -17.5 5 -16", INK, 1.5),
    ],
    "shades": [
        line("M-20 -14 L20 -14", INK, 1.8),
        Mark("M-17 -14 L-2 -14 Q-2 -5 -9.5 -5 Q-17 -5 -17 -14 Z M17 -14 L2 -14 Q2 -5 9.5 -5 Q17 -5 17 -14 Z", INK, INK),
        line("M-13 -11.5 L-9.5 -11.5 M6 -11.5 L9.5 -11.5", "#8fa3c8", 1.3),
    ],
}
MOUTHS: dict[str, Marks] = {
    "smile": [line("M-4 -3.5 Q0 1 4 -3.5", INK, 1.8)],
    "laugh": [
        inked("M-6.5 -4.5 Q0 -2.5 6.5 -4.5 Q6 4 0 4 Q-6 4 -6.5 -4.5 Z", "#8c2f45"),
        Mark("E0 1.8 3.2 1.7", _PINK),
    ],
    "o": [inked("E0 0 2.6 3.2", "#8c2f45")],
    "sad": [line("M-4 0.5 Q0 -4 4 0.5", INK, 1.8)],
    "small": [line("M-1.8 -2 Q0 -0.6 1.8 -2", INK, 1.8)],
}
LEFT_ARMS: dict[str, Marks] = {
    "down": _limb("M-24 14 Q-32 18 -30 25"),
    "up": _limb("M-24 9 Q-37 2 -36 -12"),
    "out": _limb("M-24 12 Q-34 14 -38 8"),
    "hip": _limb("M-24 12 C-40 14 -38 24 -25 22"),
    "front": _limb("M-23 15 Q-18 23 -7 20"),
}
RIGHT_ARMS: dict[str, Marks] = {
    "down": _limb("M24 14 Q32 18 30 25"),
    "up": _limb("M24 9 Q37 2 36 -12"),
    "out": _limb("M24 12 Q34 14 38 8"),
    "hip": _limb("M24 12 C40 14 38 24 25 22"),
    "front": _limb("M23 15 Q18 23 7 20"),
}
_IN_FRONT = ("front",)


@dataclass(frozen=True)
class Pose:
    """What the mascot does and where."""

    description: str
    scene: str
    eyes: str = "open"
    mouth: str = "smile"
    left: str = "down"
    right: str = "down"
    item: str = ""
    at: tuple[float, float] = (50, 57)
    scale: float = 0.92
    lean: float = 0
    """Degrees clockwise."""


POSES: dict[str, Pose] = {
    "standing": Pose("standing, smiling, yellow background", "yellow"),
    "waving": Pose("waving, happy, pink background", "pink", mouth="laugh", right="up", lean=-5),
    "jumping": Pose(
        "jumping, arms up, laughing, light blue background", "sky blue", "happy", "laugh", "up", "up", at=(50, 52)
    ),
    "surprised": Pose(
        "close-up, surprised, purple background", "purple", "wide", "o", "up", "up", at=(50, 68), scale=1.45
    ),
    "winking": Pose("winking, hands on hips, green background", "green", "wink", "smile", "hip", "hip"),
    "sunglasses": Pose(
        "wearing sunglasses, on a beach, palm tree, sea",
        "beach",
        "shades",
        "smile",
        "hip",
        "up",
        scale=0.8,
        at=(54, 63),
    ),
    "sleeping": Pose(
        "sleeping, at night, moon and stars", "night", "closed", "small", "front", "front", lean=6, at=(49, 58)
    ),
    "sad": Pose("sad, in the rain, grey clouds", "rain", "sad", "sad", at=(50, 60), scale=0.86),
    "balloon": Pose(
        "flying with a red balloon, sky with clouds",
        "clouds",
        "happy",
        "laugh",
        "out",
        "up",
        "balloon",
        (42, 62),
        0.78,
        9,
    ),
    "umbrella": Pose(
        "holding a purple umbrella, rain", "shower", "open", "smile", "down", "out", "umbrella", (42, 64), 0.76
    ),
    "reading": Pose("reading a blue book, yellow background", "yellow", "down", "small", "front", "front", "book"),
    "tea": Pose("drinking tea from a red cup, beige room", "beige", "closed", "smile", "front", "front", "cup"),
    "snow": Pose(
        "in the snow, arms spread, winter, fir trees", "snow", "happy", "laugh", "out", "out", at=(50, 59), scale=0.84
    ),
    "lolly": Pose(
        "holding a lollipop, in a meadow with flowers", "meadow", "wink", "laugh", "down", "up", "lolly", (48, 61), 0.8
    ),
    "singing": Pose(
        "singing into a microphone, on a stage",
        "stage",
        "happy",
        "laugh",
        "up",
        "front",
        "microphone",
        (50, 58),
        0.86,
        -4,
    ),
    "space": Pose(
        "astronaut helmet, floating in space, planet", "space", "open", "o", "out", "out", "helmet", (49, 62), 0.78, 12
    ),
}


def draw(name: str) -> Image.Image:
    """One of POSES as a palette image."""
    pose = POSES[name]
    background, scene = SCENES[pose.scene]
    canvas = Canvas(SIZE_PX, background)
    paint(canvas, scene)
    with canvas.placed(*pose.at, pose.scale, pose.lean):
        for marks in _layers(pose):
            paint(canvas, marks)
    return canvas.finished().quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def caption(name: str) -> str:
    """The caption of a pose's picture, with the trigger word in front."""
    return f"{TRIGGER}, {POSES[name].description}"


def _layers(pose: Pose) -> list[Marks]:
    """Everything of the mascot, from back to front."""
    arms = [(LEFT_ARMS[pose.left], pose.left), (RIGHT_ARMS[pose.right], pose.right)]
    return [
        BEHIND_THE_BODY.get(pose.item, []),
        *(arm for arm, place in arms if place not in _IN_FRONT),
        BACK,
        BODY,
        SCARF,
        EYES[pose.eyes],
        MOUTHS[pose.mouth],
        BEFORE_THE_BODY.get(pose.item, []),
        *(arm for arm, place in arms if place in _IN_FRONT),
    ]
