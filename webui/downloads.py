"""A button that makes a file when pressed and hands it to the browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from webui.context import PRIVATE, handler


def download_button(label: str, make: Callable[..., Path], inputs: Any, element_id: str, **options: Any) -> gr.Button:
    """A button `element_id`; `make` gets the inputs and returns a file below a folder that the server may serve."""
    button = gr.Button(label, elem_id=element_id, size="sm", **options)
    file = gr.DownloadButton(label, elem_id=f"{element_id}-file", elem_classes="off-page")
    fetch = f"() => document.querySelector('#{element_id}-file')?.click()"
    # Two steps: the browser can only fetch what the hidden button points to, and that file is made by the first.
    button.click(handler(make), inputs, file, **PRIVATE).success(None, None, None, js=fetch, **PRIVATE)
    return button
