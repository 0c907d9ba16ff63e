"""Small pieces of HTML that several tabs show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from webui.templating import macros

_HTML = macros("pieces.html")

table = _HTML.table
"""Names with their values."""
empty = _HTML.empty
"""What stands where nothing is yet, with the next thing to do."""
found = _HTML.found
"""How many things were found."""


def notes(remarks: Sequence[str], title: str) -> str:
    """A quiet list of remarks; empty for none."""
    return str(_HTML.notes(title, remarks))


def picture(path: Path | None, words: str) -> str:
    """A picture that opens in full when it is pressed, empty for none. words: for those who don't see it."""
    return "" if path is None else str(_HTML.picture(path, words))
