"""The panel that lists all problems of a form at once, each with the way to its field; it stays until they are gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from webui.templating import macros

_HTML = macros("pieces.html")


def panel(problems: Sequence[str], place_of: Callable[[str], tuple[str, str] | None] = lambda problem: None) -> str:
    """The problems as a list, empty without any. place_of: element ids of a problem's field and of its section."""
    return str(_HTML.problems([(problem, place_of(problem)) for problem in problems]))
