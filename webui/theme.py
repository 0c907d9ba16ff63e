"""Colours that pass WCAG 2 AA in light and dark, the page's own CSS, and its keyboard map."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("page.css")
KEYBOARD = Path(__file__).with_name("keyboard.js")


def theme() -> gr.themes.Default:
    """Gradio's default theme with the contrast that its own colours lack."""
    return gr.themes.Default().set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_hover_dark="#991b1b",
    )
