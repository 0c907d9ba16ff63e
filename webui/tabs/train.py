"""The train tab."""

from __future__ import annotations

import gradio as gr

from webui.context import Context


def build(context: Context) -> None:
    """Lay out the tab."""
    gr.Markdown("## Train")
