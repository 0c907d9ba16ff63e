"""What the Settings tab shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdlora.trash import Size
from sdlora.words import count, size_in_words
from webui.templating import macros

_HTML = macros("settings.html")

folders = _HTML.folders
"""The workspace's root and its disk, then what is where, and how many."""
cache = _HTML.cache
"""How full the cache is, and its folder."""


def trash(before: str, things: int, size: Size) -> str:
    """How much lies in the trash; before: what was just done to it."""
    return str(_HTML.trash(before, f"{count(things, 'deleted item')} ({size_in_words(size.size_bytes)})"))


def missing(wanted: Sequence[Path]) -> str:
    """Which of the folders are not there."""
    return str(_HTML.missing([folder for folder in wanted if not folder.is_dir()]))
