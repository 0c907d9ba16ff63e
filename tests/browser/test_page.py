"""The page as a whole."""

from __future__ import annotations

from typing import Any

from browsing import open_tab


def test_every_tab_opens(page: Any) -> None:
    for name in ("dataset", "train", "runs", "mix", "generate", "settings"):
        open_tab(page, name)
    assert not page.complaints
