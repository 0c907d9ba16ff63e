"""Colours that pass WCAG 2 AA in light and dark, and the page's own style sheets and script."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

TEXT = gr.themes.Size(
    name="rem", xxs="0.85rem", xs="0.85rem", sm="0.85rem", md="0.95rem", lg="0.95rem", xl="1.1rem", xxl="1.4rem"
)
"""Four sizes, in the browser's own measure, so that its setting for larger text counts."""
_ASSETS = Path(__file__).parent / "assets"
STYLES = tuple(_ASSETS / name for name in ("page.css", "runs.css", "evaluation.css", "images.css"))
"""The whole page's first, then those of single tabs."""
SCRIPT = _ASSETS / "page.js"
"""Gradio's quirks, choice of light or dark, keyboard map."""

SHARED = _ASSETS / "shared.js"
"""What scripts of components share: it has to be there before the first of them."""


def theme() -> gr.themes.Default:
    """Gradio's default theme with the contrast that its own colours lack."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        text_size=TEXT,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
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
