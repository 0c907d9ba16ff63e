"""Where the mascot is: a background colour and what stands on it, in hundredths of the picture's edge."""

from __future__ import annotations

from tests.sample_images.marks import LEAF, RED, WHITE, YELLOW, Mark, Marks, line

SCENES: dict[str, tuple[str, Marks]] = {
    "yellow": ("#ffd95a", [Mark("E50 88 30 4", "#efc23a")]),
    "pink": ("#ffb8d2", [Mark("E50 88 30 4", "#f29abb")]),
    "sky blue": ("#a8dcff", [Mark("E50 93 22 3", "#84c3ee")]),
    "purple": ("#b79cff", []),
    "green": ("#b9e67a", [Mark("E50 89 32 4", "#9fd05e")]),
    "beige": (
        "#f3ddbd",
        [Mark("M0 78 L100 78 L100 100 L0 100 Z", "#c58f5c"), line("M0 78 L100 78", "#a87243", 1.2)],
    ),
    "night": (
        "#2b2f63",
        [
            Mark("E18 22 11 11", "#ffe9a6"),
            Mark("E23 18.5 10 10", "#2b2f63"),
            Mark("E36 8 1.2 1.2 E8 48 1 1 E92 50 1 1 E68 9 1 1 E94 12 1.2 1.2 E18 60 0.9 0.9 E84 64 0.9 0.9", WHITE),
            Mark("M0 82 Q50 70 100 82 L100 100 L0 100 Z", "#454a8c"),
            line("M80 34 L85.5 34 L80 40.5 L85.5 40.5 M86 19 L93.5 19 L86 28 L93.5 28", WHITE, 1.5),
        ],
    ),
    "rain": (
        "#8fa3b8",
        [
            Mark("E26 15 14 10 E42 12 15 11 E58 16 13 9 R14 14 56 11 5", "#67788c"),
            line("M10 34 L8 41 M26 32 L24 39 M78 30 L76 37 M90 40 L88 47 M12 58 L10 65 M88 66 L86 73", "#d9ecff", 1.4),
            line("M18 78 L16 85 M82 52 L80 59 M94 20 L92 27 M6 14 L4 21 M24 50 L22 57", "#d9ecff", 1.4),
            Mark("E50 90 36 5", "#7488a0"),
        ],
    ),
    "shower": (
        "#9cc4dd",
        [
            line("M8 12 L5 22 M22 4 L19 14 M38 10 L36 16 M92 14 L89 24 M8 44 L5 54 M20 28 L17 38", "#e8f5ff", 1.4),
            line("M94 48 L91 58 M10 72 L7 82 M92 74 L89 84 M22 58 L20 64", "#e8f5ff", 1.4),
            Mark("E50 91 38 5", "#7eabc8"),
        ],
    ),
    "clouds": (
        "#7cc7ff",
        [
            Mark("E16 22 8 6 E25 18 9 8 E34 23 7 5 R10 21 30 7 3.5", WHITE),
            Mark("E80 68 8 6 E88 64 8 7 E96 69 7 5 R74 67 28 7 3.5", WHITE),
            Mark("E8 76 9 6 E17 72 8 7 R0 75 26 7 3.5", WHITE),
        ],
    ),
    "snow": (
        "#bfe3f7",
        [
            Mark("M0 70 Q26 56 54 70 Q78 60 100 68 L100 100 L0 100 Z", "#e3f3fc"),
            Mark("M0 84 Q50 74 100 84 L100 100 L0 100 Z", WHITE),
            Mark("E50 90 32 4", "#d8ecf6"),
            Mark("M88 40 L97 62 L79 62 Z M88 50 L99 72 L77 72 Z", "#3f9a7d"),
            Mark("M12 46 L20 64 L4 64 Z M12 54 L22 74 L2 74 Z", "#3f9a7d"),
            Mark("E20 12 1.6 1.6 E40 8 1.3 1.3 E66 14 1.6 1.6 E86 10 1.4 1.4 E8 30 1.4 1.4 E26 28 1.2 1.2", WHITE),
            Mark("E74 30 1.3 1.3 E94 28 1.5 1.5 E84 82 1 1", WHITE),
        ],
    ),
    "beach": (
        "#9fe0f5",
        [
            Mark("E80 18 10 10", YELLOW),
            Mark("M0 54 L100 54 L100 78 L0 78 Z", "#2e9fd6"),
            line("M10 61 Q14 59 18 61 M76 60 Q80 58 84 60 M84 68 Q88 66 92 68", WHITE, 1.2),
            Mark("M0 74 Q30 68 60 73 Q82 77 100 72 L100 100 L0 100 Z", "#f7dfa0"),
            line("M12 76 Q15 54 9 36", "#8a5a32", 3.4),
            line(
                "M9 36 Q0 30 -4 38 M9 36 Q2 24 -4 26 M9 36 Q12 22 22 22 M9 36 Q20 28 27 36 M9 36 Q17 36 21 46",
                LEAF,
                3.4,
            ),
            Mark("E50 91 30 4", "#e4c67c"),
        ],
    ),
    "meadow": (
        "#aee3ff",
        [
            Mark("E18 18 8 6 E26 14 9 8 E34 19 7 5 R12 17 28 7 3.5", WHITE),
            Mark("M0 62 Q30 48 60 62 Q82 54 100 60 L100 100 L0 100 Z", "#94d66b"),
            Mark("M0 82 Q50 72 100 82 L100 100 L0 100 Z", "#6fbf4b"),
            line("M10 94 L10 82 M90 92 L90 79 M22 98 L22 90 M80 98 L80 91", "#3f8a2f", 1.4),
            Mark("E10 79 2.4 2.4 E12.6 82 2.4 2.4 E7.4 82 2.4 2.4 E10 84.6 2.4 2.4", RED),
            Mark("E90 75 2.6 2.6 E93 78.4 2.6 2.6 E87 78.4 2.6 2.6 E90 81.6 2.6 2.6", "#b06be0"),
            Mark("E22 88 1.9 1.9 E24.2 90.4 1.9 1.9 E19.8 90.4 1.9 1.9 E22 92.6 1.9 1.9", WHITE),
            Mark("E80 88.6 1.9 1.9 E82.2 91 1.9 1.9 E77.8 91 1.9 1.9 E80 93.2 1.9 1.9", WHITE),
            Mark("E10 82 1.6 1.6 E90 78.4 1.8 1.8 E22 90.4 1.3 1.3 E80 91 1.3 1.3", YELLOW),
        ],
    ),
    "stage": (
        "#7a1f3d",
        [
            Mark("M14 0 L30 0 L66 84 L6 84 Z", "#9c3a52"),
            Mark("M86 0 L70 0 L34 84 L94 84 Z", "#9c3a52"),
            Mark("M22 0 L78 0 L66 84 L34 84 Z", "#b5525f"),
            Mark("M0 82 L100 82 L100 100 L0 100 Z", "#c98d4e"),
            line("M0 82 L100 82 M0 91 L100 91", "#a56d35", 1),
            Mark("E50 88 34 5", "#e8b878"),
            Mark("M0 0 L16 0 Q12 40 2 82 L0 82 Z M100 0 L84 0 Q88 40 98 82 L100 82 Z", "#d33a4f"),
            line("M8 0 Q7 40 1 70 M92 0 Q93 40 99 70", "#a82a40", 1.2),
            line("M82 22 L82 34 M82 22 L89 20 L89 31", WHITE, 1.4),
            Mark("E80 34 2.4 1.9 E87 31 2.4 1.9", WHITE),
        ],
    ),
    "space": (
        "#1d1b4b",
        [
            Mark("E16 22 10 10", "#ff9f5a"),
            Mark("M6.4 19.4 Q16 23 25.8 19.6 L26 23.4 Q16 27 6.2 23.6 Z", "#ffc48a"),
            line("M6.4 25 Q-1 32 3 32.5 Q14 31 27 19 Q34 11 28 11.6 Q26 12 24 14", "#ffe0bd", 1.8),
            Mark("E89 72 7 7", "#7cc7ff"),
            Mark("E87 70 2 2 E92 74 1.5 1.5", "#4f9fe0"),
            Mark(
                "E8 58 1.2 1.2 E34 6 0.9 0.9 E54 6 1.1 1.1 E94 52 1.1 1.1 E84 14 1 1 E90 90 1.2 1.2 E20 92 1 1", WHITE
            ),
            Mark("E60 95 0.9 0.9 E12 42 0.8 0.8 E76 92 0.8 0.8 E96 94 0.8 0.8", WHITE),
        ],
    ),
}
