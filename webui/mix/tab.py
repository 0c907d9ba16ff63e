"""The mix tab: the adapter library, the adapters in use, comparison, export and saved mixes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdlora.errors import ConfigError
from sdlora.library.rows import apply_tags, to_tags
from webui.context import QUICK, Context, handler
from webui.layout import problems_html
from webui.mix.export import build_export, build_saved
from webui.mix.library import LibraryPanel
from webui.mix.rows import RowsPanel
from webui.problems import panel


def build(context: Context) -> None:
    """Lay out the tab."""
    rows = RowsPanel.of(context)
    gr.HTML("<h2>Mix</h2>", elem_classes="tab-title")
    with gr.Row(elem_classes="page-columns mix-columns"):
        with gr.Column():
            library = LibraryPanel(context)
        with gr.Column():
            gr.Markdown("### Adapters in use\nEach with its own weight. Generate generates with the same list.")
            rows.place("mix")
            rows.tags.render()
            problems = context.share("mix.problems", problems_html("mix-problems", elem_classes="bare"))
        with gr.Column():
            gr.Markdown("### What to make of them")
            _build_comparison(context)
            build_export(context, library)
            build_saved(context, rows)
    library.wire(rows)
    _wire_tags(context, rows, problems)


def _wire_tags(context: Context, rows: RowsPanel, problems: gr.HTML) -> None:
    """The text follows the rows (each change sees to that), and the rows follow the text."""
    services = context.services

    def read(text: str) -> dict[Any, Any]:
        # Leaving the field fires too, also where nothing was typed.
        if text.strip() == to_tags(services.active.rows, services.adapters):
            return {problems: ""}
        scan = services.scan()
        try:
            services.active.change(lambda now: apply_tags(now, text, scan))
        except ConfigError as error:
            return {problems: panel(error.problems)}
        return {problems: "", **rows.shown()}

    for event in (rows.tags.submit, rows.tags.blur):
        event(handler(read), rows.tags, [problems, *rows.outputs], **QUICK)


def _build_comparison(context: Context) -> None:
    """None, each alone, all together; what it generates is shown here and in Generate."""
    with gr.Accordion("Compare at the same seed", open=True, elem_id="mix-compare-panel"):
        with gr.Row(elem_classes="row-end"):
            prompt = gr.Textbox(
                label="Prompt for comparisons and sweeps", max_lines=2, elem_id="mix-prompt", scale=4, min_width=220,
                info="Empty: the prompt of Generate. All other settings are those of Generate.",
            )  # fmt: skip
            compare = gr.Button("Compare: none, each, together", elem_id="mix-compare", scale=0, min_width=240)
        context.share("mix.progress", gr.HTML(elem_id="mix-progress"))
        context.share("mix.sheet", gr.HTML(elem_id="mix-sheet"))
    context.remember("mix.prompt", prompt)
    context.share("mix.prompt", prompt)
    context.share("mix.compare", compare)
