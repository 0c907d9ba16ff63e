"""One image with its caption on its way out of a packed file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sdlora.constants import MIB

LARGEST_BYTES = 256 * MIB
"""Larger images are left out: a packed file may come from anywhere."""

_LONGEST_NAME = 100
_NAMES_TOLD = 5
# Names of devices on Windows, which no file there can have, whatever its ending.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class PackedSample:
    """An image file's bytes and its caption. `name` is what it is called in the packed file, not a path to trust."""

    name: str
    image: bytes
    caption: str | None
    has_others: bool = False
    """Whether the packed file has another caption for it that says something else."""


@dataclass(frozen=True)
class Unusable:
    """A sample that can't be used, and why."""

    name: str
    reason: str


@dataclass
class Named:
    """How many there are, and the names of the first ones."""

    number: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.number += 1
        if len(self.names) < _NAMES_TOLD:
            self.names.append(name)

    def __str__(self) -> str:
        more = f" and {self.number - len(self.names)} more" if self.number > len(self.names) else ""
        return ", ".join(self.names) + more


def file_stem(name: str) -> str:
    """A harmless file name, without ending, from whatever a packed file calls a sample: never a path."""
    stem = re.sub(r"[^\w+-]+", "_", name).strip("_")[:_LONGEST_NAME]
    return f"_{stem}" if not stem or _RESERVED.fullmatch(stem) else stem
