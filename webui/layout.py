"""Pieces of layout that every tab has."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.scripts import LIVE, PRESSES, PROBLEMS


def small_button(label: str, element_id: str, width_px: int, **options: Any) -> gr.Button:
    """A button in a row of them, as wide as its words."""
    return gr.Button(label, **{"elem_id": element_id, "size": "sm", "min_width": width_px, "scale": 0, **options})


def live_html(element_id: str, **options: Any) -> gr.HTML:
    """An empty region whose changes screen readers read out."""
    return gr.HTML("", elem_id=element_id, **{"js_on_load": LIVE, **options})


def problems_html(element_id: str, **options: Any) -> gr.HTML:
    """An empty region for `problems.panel`."""
    return gr.HTML("", elem_id=element_id, js_on_load=PROBLEMS, **options)


def html(element_id: str, **options: Any) -> gr.HTML:
    """An empty region without a frame around it."""
    return gr.HTML("", **{"elem_id": element_id, "elem_classes": "bare", **options})


def tiles_html(element_id: str, **options: Any) -> gr.HTML:
    """An empty region for `pieces.tiles`; a press is its `select` event."""
    return html(element_id, js_on_load=PRESSES, **options)


def hidden_text(element_id: str, label: str, value: str = "") -> gr.Textbox:
    """A text that lies in the page and not on the server: what it says is what its page shows. Put it off-page."""
    return gr.Textbox(value, elem_id=element_id, label=label)
