"""Where Gradio behaves otherwise than a page needs, and what is done about it. Nothing else here reaches into Gradio.

Each says what Gradio 6.31 does; `tests/browser/test_gradio_quirks.py` shows it on a bare page and fails once a newer
Gradio behaves, so that the entry can go. Those that are mended in the browser are in the first section of page.js.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context as GradioContext

FOLLOW_LINK = "() => setTimeout(() => document.querySelector('#%s')?.click(), 150)"
"""Script that presses a DownloadButton: its link is on the page a moment after the answer that brought it."""


def spare_progress(page: gr.Blocks) -> None:
    """Take components whose handlers show no progress out of the news about it.

    Gradio writes the progress of each event to the outputs of all events so far, and each of those components then
    generates itself anew: with some hundred fields the polls alone keep a browser busy.
    """
    for function in page.fns.values():
        if function.show_progress == "hidden" and function.show_progress_on is None:
            function.show_progress_on = []


def page_load() -> Any:
    """The event of the page being opened, for a `gr.render` inside a tab, where the page isn't at hand by a name."""
    return GradioContext.root_block.load


def pressed(event: gr.EventData) -> dict[str, Any]:
    """The data of a pressed button (see `scripts.PRESSES`). Gradio gives single attributes, not which there are."""
    return dict(event._data)
