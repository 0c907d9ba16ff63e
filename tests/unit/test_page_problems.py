"""Where the page says what is wrong: under what it is about, until it is mended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

import gradio as gr

import webui
from sdlora.errors import ConfigError, DataError
from webui.problems import shown_in


def test_what_a_handler_refuses_stands_in_its_place_until_it_succeeds() -> None:
    place, field = gr.HTML(), gr.Textbox()

    def act(value: str) -> dict[Any, Any]:
        if value == "gone":
            raise DataError("<a> is gone")
        if value == "wrong":
            raise ConfigError("the form", ["one", "two"])
        return {field: value}

    shown = shown_in(place, act)
    assert "&lt;a&gt; is gone" in shown("gone")[place]
    assert shown("wrong")[place].count("<li>") == 2
    assert field not in shown("wrong")
    assert shown("right") == {place: "", field: "right"}


def test_messages_that_pop_up_are_raised_by_what_stands_behind_all_handlers_alone() -> None:
    folder = Path(webui.__file__).parent
    raising = {path.name for path in folder.rglob("*.py") if re.search(r"gr\.(Error|Warning)\(", path.read_text())}
    assert raising == {"context.py", "api.py", "gradio_quirks.py"}
