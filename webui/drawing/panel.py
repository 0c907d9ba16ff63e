"""Handlers whose problems stay on the page in a panel until they are solved, instead of passing by as a message."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr

from sdlora.errors import ConfigError, SdloraError
from webui.context import handler
from webui.views.problems import panel


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
