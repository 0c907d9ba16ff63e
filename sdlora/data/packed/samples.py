"""One image with its caption on its way out of a packed file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdlora.constants import MIB

LARGEST_BYTES = 256 * MIB
"""Larger images are left out: a packed file may come from anywhere."""

_LONGEST_NAME = 100
# Names of devices on Windows, which no file there can have, whatever its ending.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class PackedSample:
    """An image file's bytes and its caption. `name` is what it is called in the packed file, not a path to trust."""

    name: str
    image: bytes
    caption: str | None


@dataclass(frozen=True)
class Unusable:
    """A sample that can't be used, and why."""

    name: str
    reason: str


def file_stem(name: str) -> str:
    """A harmless file name, without ending, from whatever a packed file calls a sample: never a path."""
    stem = re.sub(r"[^\w+-]+", "_", name).strip("_")[:_LONGEST_NAME]
    return f"_{stem}" if not stem or _RESERVED.fullmatch(stem) else stem
