"""What is new on the server, told to open pages in a few bytes: a page asks each second for the tab in view alone, and
has Gradio fetch what the tab shows only when that has changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("webui")

Stamp = Callable[[], object]
"""Gives a value that changes when something that a tab shows does."""


@dataclass(frozen=True)
class Told:
    """A line, and what of its changes screen readers speak."""

    words: str = ""
    spoken: str = ""


@dataclass
class News:
    """Stamps by tab, and the header's line. One each a server; asked from several threads."""

    status: Callable[[], Told] = lambda: Told()
    """The header's line."""
    stamps: dict[str, list[Stamp]] = field(default_factory=dict)
    always: list[Callable[[], object]] = field(default_factory=list)
    """What is to be seen to as long as any page is open."""
    page: str = ""
    """Tells this server's page from another version's, whose handlers have other numbers."""

    def now(self, tab: str) -> dict[str, Any]:
        """The header's line and the tab's stamp; what fails is logged, and counts as unchanged."""
        for act in self.always:
            self._safely(act)
        stamps = [self._safely(stamp) for stamp in self.stamps.get(tab, ())]
        told = self._safely(self.status) or Told()
        # Hashes of texts hold within one process only: after a restart open pages see another stamp and fetch
        # everything.
        return {"status": told, "stamp": str(hash(tuple(stamps))), "page": self.page}

    def _safely(self, act: Callable[[], object]) -> object:
        try:
            return act()
        except Exception:  # a page asks each second: it must not be told each second
            log.exception("what is new could not be found out")
            return None


def each_second(while_true: bool) -> object:
    """A stamp that changes each second while something holds."""
    return time.time() // 1 if while_true else None
