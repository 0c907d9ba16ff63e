"""Small pieces of HTML that several tabs show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from webui.templating import macros

_HTML = macros("pieces.html")

table = _HTML.table
"""Names with their values."""
empty = _HTML.empty
"""What stands where nothing is yet, with the next thing to do."""
found = _HTML.found
"""How many things were found."""


@dataclass(frozen=True)
class Tile:
    """A small picture to press."""

    id: str
    """What the press hands on, as `pressed["tile"]`: a name that holds whatever the list is by then."""
    picture: Path
    name: str
    line: str = ""
    """One line more."""
    is_wrong: bool = False
    """Whether that line tells of something to be seen to."""


def tiles(label: str, shown: Sequence[Tile], chosen: str | None = None) -> str:
    """A grid of tiles, empty for none. chosen: the id of the one that is marked."""
    return str(_HTML.tiles(label, shown, chosen))


def notes(remarks: Sequence[str], title: str) -> str:
    """A quiet list of remarks; empty for none."""
    return str(_HTML.notes(title, remarks))


def picture(path: Path | None, words: str) -> str:
    """A picture that opens in full when it is pressed, empty for none. words: for those who don't see it."""
    return "" if path is None else str(_HTML.picture(path, words))
