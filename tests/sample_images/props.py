"""What the mascot holds or wears, in its own coordinates: (0, 0) is the middle of its body."""

from __future__ import annotations

from tests.sample_images.marks import INK, RED, VIOLET, WHITE, Marks, inked, line

BEHIND_THE_BODY: dict[str, Marks] = {
    "balloon": [
        line("M37 -8 Q34 -22 38 -34", INK, 0.9),
        inked("M38 -34 L41 -30 L35 -30 Z", RED),
        inked("M38 -66 C51 -66 54 -54 51 -46 C48 -38 42 -35 38 -33 C34 -35 28 -38 25 -46 C22 -54 25 -66 38 -66 Z", RED),
        line("M30.5 -50 C30 -56 32 -60 36 -61.5", "#ffd0d3", 1.8),
    ],
    "umbrella": [
        line("M36 14 L36 -42", INK, 3.4),
        line("M36 14 L36 -42", "#b5793f", 1.4),
        inked(
            "M8 -66 C36 -74 66 -60 70 -34 Q62 -40 55 -33 Q48 -40 40 -34 Q32 -42 24 -36 Q16 -44 8 -38 Q-2 -46 -12 -40 "
            "C-16 -54 -6 -62 8 -66 Z",
            VIOLET,
        ),
        line("M24 -68.5 C14 -58 8 -48 8 -38 M24 -68.5 C24 -58 24 -48 24 -36 M24 -68.5 C36 -60 41 -46 40 -34"),
        line("M24 -68.5 C48 -62 54 -48 55 -33"),
    ],
    "lolly": [
        line("M37 -4 L41 -22", INK, 3),
        line("M37 -4 L41 -22", WHITE, 1.2),
        inked("E42 -31 11 11", "#ff6fa3"),
        line("A42 -31 7 7 0 300 M42 -31 Q46 -31 45 -34", WHITE, 1.8),
    ],
}
BEFORE_THE_BODY: dict[str, Marks] = {
    "book": [
        inked("M-20 12 L-20 30 L0 33 L20 30 L20 12 L0 16 Z", "#3f6fd8"),
        inked("M-17 11 Q-7 8 0 14 L0 30 Q-8 25 -17 27 Z M17 11 Q7 8 0 14 L0 30 Q8 25 17 27 Z", WHITE),
        line("M-13.5 15 Q-8 13.6 -3.5 17 M-13.5 19.6 Q-8 18.2 -3.5 21.6 M13.5 15 Q8 13.6 3.5 17", "#9aa7c4", 1),
        line("M13.5 19.6 Q8 18.2 3.5 21.6", "#9aa7c4", 1),
    ],
    "cup": [
        line("M9 18 C18 15 18 27 8 26"),
        inked("M-10 14 L-8 26 Q-7 30 -2 30 L3 30 Q8 30 9 26 L11 14 Z", RED),
        inked("E0.5 14 10.5 2.6", "#7a4a2b"),
    ],
    "microphone": [
        inked("M-4.5 9 L4.5 9 L2.5 27 L-2.5 27 Z", "#4a5876"),
        inked("E0 6 6.5 6.5", "#c3cbe0"),
        line("M-4 2.6 L4.4 9.4 M4 2.6 L-4.4 9.4 M-6 6 L6 6", "#7d8aab", 0.9),
    ],
    "helmet": [
        line("A0 -18 40 40 -222 42", "#6f8fd0", 3.2),
        line("A0 -18 40 40 -222 42", "#d6ebff", 1.6),
        line("A0 -18 34.5 34.5 196 232", WHITE, 2),
    ],
}
