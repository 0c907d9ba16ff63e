"""The panel that lists all problems of a form at once, each with the way to its field; it stays until they are gone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from sdlora.errors import ConfigError, SdloraError
from webui.context import handler
from webui.templating import macros

_HTML = macros("pieces.html")


def panel(problems: Sequence[str], place_of: Callable[[str], tuple[str, str] | None] = lambda problem: None) -> str:
    """The problems as a list, empty without any. place_of: element ids of a problem's field and of its section."""
    return str(_HTML.problems([(problem, place_of(problem)) for problem in problems]))


def shown_problems(function: Callable[..., Any], num_outputs: int) -> Callable[..., Any]:
    """A handler with `num_outputs` outputs of which the last is the panel; where it raises, only that one changes."""

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except SdloraError as error:
            listed = error.problems if isinstance(error, ConfigError) else [str(error)]
            return (*[gr.skip()] * (num_outputs - 1), panel(listed))

    return handler(guarded)


def shown_in(place: gr.HTML, function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler that answers by component; where it raises, its problems stand in `place` and nothing else changes."""

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except SdloraError as error:
            return {place: panel(error.problems if isinstance(error, ConfigError) else [str(error)])}

    return handler(guarded)
