"""Problems stand under what they are about until they are gone: a panel that lists them, with the way to each field.

What pops up is for events without a place.
"""

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


def listed(error: SdloraError) -> list[str]:
    """The problems that an error tells of."""
    return list(error.problems) if isinstance(error, ConfigError) else [str(error)]


def shown_problems(function: Callable[..., Any], num_outputs: int) -> Callable[..., Any]:
    """A handler with `num_outputs` outputs of which the last is the panel; where it raises, only that one changes."""

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except SdloraError as error:
            return (*[gr.skip()] * (num_outputs - 1), panel(listed(error)))

    return handler(guarded)


def shown_in(place: gr.HTML, function: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    """A handler that answers by component; where it raises, its problems stand in `place` and nothing else changes.

    `place`, one of the event's outputs, is emptied by what succeeds, unless that says something there itself.
    """

    @functools.wraps(function)
    def guarded(*arguments: Any) -> dict[Any, Any]:
        try:
            return {place: "", **function(*arguments)}
        except SdloraError as error:
            return {place: panel(listed(error))}

    told: Callable[..., dict[Any, Any]] = handler(guarded)
    return told
