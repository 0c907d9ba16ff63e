"""A button that makes a file when pressed and hands it to the browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from webui.context import handler

_FETCH_MILLISECONDS = 150


def download_button(label: str, make: Callable[..., Path], inputs: Any, element_id: str, **options: Any) -> gr.Button:
    """A button `element_id`; `make` gets the inputs and returns a file below a folder that the server may serve."""
    button = gr.Button(label, elem_id=element_id, size="sm", **options)
    file = gr.DownloadButton(label, elem_id=f"{element_id}-file", elem_classes="off-page")
    # The link is on the page a moment after the answer; only then can it be followed.
    fetch = f"() => setTimeout(() => document.querySelector('#{element_id}-file')?.click(), {_FETCH_MILLISECONDS})"
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    button.click(handler(make), inputs, file, **private).success(None, None, None, js=fetch, **private)
    return button
