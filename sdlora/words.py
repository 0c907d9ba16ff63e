"""Figures and commands as people write them: durations, speeds, sizes, counts, what is typed into a terminal."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sdlora.constants import GIB, MIB


def count(number: int, what: str) -> str:
    """`1 image`, `12 images`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def first_few(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 2 more`: a message that lists hundreds says nothing."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def size_in_words(size_bytes: float) -> str:
    """`1.5 GiB`, `20 MiB`."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"


def speed_in_words(seconds_per_step: float) -> str:
    """Steps a second, or seconds a step when they are slow."""
    if seconds_per_step >= 1:
        return f"{seconds_per_step:.1f} s/step"
    return f"{1 / max(seconds_per_step, 1e-9):.1f} steps/s"


def duration_in_words(seconds: float) -> str:
    """`1 h 2 min 3 s`; what is 0 in front is left out."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h " if hours else "") + (f"{minutes} min " if minutes or hours else "") + f"{rest} s"


def wrong_ending(path: Path, suffix: str, *others: str) -> str | None:
    """What to say of a new file's name that doesn't end in `suffix`, without which nobody knows what it is.

    others: endings that mean the same.
    """
    if path.suffix.lower() in (suffix, *others):
        return None
    # "ink-v1.5" has no ending that is to go.
    right = path.stem if path.suffix[1:].isalpha() else path.name
    return f"{path}: what is written is a {suffix} file; give it that ending: {right}{suffix}"


def as_typed(*arguments: object) -> str:
    """A command as one types it into this system's terminal, quoted where that is needed."""
    words = [str(argument) for argument in arguments]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
