"""The mix tab: the adapter library, the adapters in use, comparison, export and saved mixes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdlora.library.rows import apply_tags, to_tags
from webui.context import QUEUED, QUICK, Context, handler
from webui.layout import problems_html
from webui.mix.export import build_export, build_saved
from webui.mix.library import LibraryPanel
from webui.mix.rows import build_rows, shape
from webui.problems import shown_problems


def build(context: Context) -> None:
    """Lay out the tab."""
    changes = shape(context)
    tags = gr.Textbox(
        label="As text", lines=2, max_lines=5, elem_id="mix-tags", render=False, buttons=["copy"],
        info="The rows as they stand in a prompt. Edit it and press Enter: the rows follow.",
        placeholder="<lora:name:text encoder:UNet>",
    )  # fmt: skip
    context.share("mix.tags", tags)
    gr.Markdown("## Mix\nPut adapters together, each with its own weight. Generate generates with the same list.")
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            library = LibraryPanel(context)
        with gr.Column(scale=7, min_width=320):
            gr.Markdown("### Adapters in use")
            build_rows(context, "mix", full=True)
            tags.render()
            problems = context.share("mix.problems", problems_html("mix-problems"))
            _build_comparison(context)
            build_export(context, library)
            build_saved(context, changes)
    library.wire(changes, tags)
    _wire_tags(context, changes, tags, problems)


def _wire_tags(context: Context, changes: gr.State, tags: gr.Textbox, problems: gr.HTML) -> None:
    """The text follows the rows (each row sees to that), and the rows follow the text."""
    services = context.services

    def read(text: str, count: int) -> tuple[Any, Any, str]:
        rows = services.active.rows
        if text.strip() == to_tags(rows, services.adapters):
            return gr.skip(), gr.skip(), ""
        from_text = apply_tags(rows, text, services.scan())
        after = services.active.change(lambda _: from_text)
        return count + 1, to_tags(after, services.adapters), ""

    def write() -> str:
        return to_tags(services.active.rows, services.adapters)

    for event in (tags.submit, tags.blur):
        event(shown_problems(read, 3), [tags, changes], [changes, tags, problems], **QUEUED)
    context.on_load.append((write, [], [tags]))
    context.shared["tab.mix"].select(handler(write), None, [tags], **QUICK)


def _build_comparison(context: Context) -> None:
    """None, each alone, all together; what it generates is shown here and in Generate."""
    with gr.Accordion("Compare at the same seed", open=True, elem_id="mix-compare-panel"):
        with gr.Row(elem_classes="row-end"):
            prompt = gr.Textbox(
                label="Prompt for comparisons and sweeps", max_lines=2, elem_id="mix-prompt", scale=4, min_width=220,
                info="Empty: the prompt of Generate. All other settings are those of Generate.",
            )  # fmt: skip
            compare = gr.Button("Compare: none, each, together", elem_id="mix-compare", scale=2, min_width=200)
        context.share("mix.progress", gr.HTML(elem_id="mix-progress"))
        context.share("mix.sheet", gr.HTML(elem_id="mix-sheet"))
    context.remember("mix.prompt", prompt)
    context.share("mix.prompt", prompt)
    context.share("mix.compare", compare)
