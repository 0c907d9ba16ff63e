"""The adapters in use as rows of inputs, the same in Mix (with everything) and Generate (the essential)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from sdlora.library import rows as rows_of
from sdlora.library.rows import BLOCK_PRESETS, Row, to_tags
from webui.context import LAST_COUNTS, QUEUED, Context, handler
from webui.mix import view
from webui.pieces import empty

SWEEP = "0:1.2:0.2"
_LOWEST, _HIGHEST = -2.0, 2.0
_STEP = 0.05


def shape(context: Context) -> gr.State:
    """Counts up when rows come, go or change places: both tabs lay their rows out anew then."""
    if "adapters.shape" not in context.shared:
        context.share("adapters.shape", gr.State(0))
    state: gr.State = context.shared["adapters.shape"]
    return state


def build_rows(context: Context, tab: str, *, full: bool) -> None:
    """Rows that live in the named tab. full: with text encoder, blocks, steps, trigger words and sweep."""
    services, changes = context.services, shape(context)
    triggers = [context.page.load, changes.change, context.shared[f"tab.{tab}"].select]

    @gr.render(triggers=triggers, show_progress="hidden")
    def lay_out() -> None:
        rows = services.active.rows
        if not rows:
            gr.HTML(empty("No adapter in use. Choose one in the library and press Add." if full else "None."))
        for index, row in enumerate(rows):
            _RowInputs(context, row, tab, changes).lay_out(full, is_first=index == 0, is_last=row is rows[-1])


class _RowInputs:
    """One row's inputs and what they do."""

    def __init__(self, context: Context, row: Row, tab: str, changes: gr.State) -> None:
        self.context, self.services, self.row, self.changes = context, context.services, row, changes
        self.entry = self.services.adapters.by_path(row.file)
        self.prefix = f"{tab}-row-{row.id}"
        self.tags: gr.Textbox = context.shared["mix.tags"]

    def lay_out(self, full: bool, *, is_first: bool, is_last: bool) -> None:
        """Lay the row out."""
        row = self.row
        with gr.Column(elem_classes="adapter-row", elem_id=self.prefix):
            with gr.Row(elem_classes="adapter-line"):
                about = "file is gone" if self.entry is None else view.summary(self.entry)
                enabled = gr.Checkbox(
                    row.enabled, label=row.name, info=about, interactive=True, elem_id=f"{self.prefix}-on",
                    scale=3, min_width=180, container=False,
                )  # fmt: skip
                slider, number = self._weight("Weight", row.weight, "weight")
                if full:
                    self._order(is_first, is_last)
                remove = gr.Button(
                    "Remove", size="sm", scale=0, min_width=76, elem_id=f"{self.prefix}-remove", variant="secondary"
                )
            if full:
                with gr.Accordion("Text encoder, blocks, steps, sweep", open=False, elem_id=f"{self.prefix}-more"):
                    self._details()
        self._wire(enabled.input, partial(self._set, "enabled"), [enabled])
        for weight, other in ((slider, number), (number, slider)):
            self._wire(weight.input, partial(self._set_weight, "weight"), [weight], [other])
        remove.click(handler(self._remove), [self.changes], [self.changes, self.tags], **QUEUED)

    def _weight(self, label: str, value: float, name: str) -> tuple[gr.Slider, gr.Number]:
        slider = gr.Slider(
            _LOWEST, _HIGHEST, _clamped(value), step=_STEP, label=f"{label} of {self.row.name}", interactive=True,
            elem_id=f"{self.prefix}-{name}-slider", elem_classes="bare-slider", show_label=False, scale=4,
            min_width=150, buttons=[], container=False,
        )  # fmt: skip
        number = gr.Number(
            value, step=_STEP, label=f"{label} of {self.row.name}, any number", show_label=False, interactive=True,
            elem_id=f"{self.prefix}-{name}", scale=1, min_width=84, container=False,
        )  # fmt: skip
        return slider, number

    def _order(self, is_first: bool, is_last: bool) -> None:
        for name, words, by, is_possible in (("up", "Up", -1, not is_first), ("down", "Down", 1, not is_last)):
            button = gr.Button(
                words, size="sm", scale=0, min_width=60, interactive=is_possible, elem_id=f"{self.prefix}-{name}"
            )
            button.click(handler(partial(self._move, by)), [self.changes], [self.changes, self.tags], **QUEUED)

    def _details(self) -> None:
        row = self.row
        linked = gr.Checkbox(
            row.text_encoder is None, label="Text encoder follows the UNet", interactive=True,
            info="Off: it gets a weight of its own.", elem_id=f"{self.prefix}-linked",
        )  # fmt: skip
        text_encoder = row.weight if row.text_encoder is None else row.text_encoder
        with gr.Row(visible=row.text_encoder is not None, elem_classes="adapter-line") as apart:
            gr.Markdown("Text encoder weight", elem_classes="row-words")
            slider, number = self._weight("Text encoder weight", text_encoder, "te")
        with gr.Row():
            blocks = gr.Dropdown(
                list(BLOCK_PRESETS), value=row.blocks, allow_custom_value=True, label="Block weights", interactive=True,
                info="A preset, numbers between commas in lbw order, or MID=0.5,OUT03=0.",
                elem_id=f"{self.prefix}-blocks", min_width=220,
            )  # fmt: skip
            start = gr.Slider(
                0, 1, row.start, step=0.05, label="Sets in after", info="Share of the sampling steps.",
                interactive=True, elem_id=f"{self.prefix}-start", min_width=160, buttons=[],
            )  # fmt: skip
            end = gr.Slider(
                0, 1, row.end, step=0.05, label="Left out after", info="Share of the sampling steps.",
                interactive=True, elem_id=f"{self.prefix}-end", min_width=160, buttons=[],
            )  # fmt: skip
        self._wire(linked.input, self._link, [linked], [apart])
        for weight, other in ((slider, number), (number, slider)):
            self._wire(weight.input, partial(self._set_weight, "text_encoder"), [weight], [other])
        self._wire(blocks.input, self._set_blocks, [blocks])
        self._wire(start.input, partial(self._set, "start"), [start])
        self._wire(end.input, partial(self._set, "end"), [end])
        self._words()
        self._sweep()

    def _words(self) -> None:
        about = self.entry.about if self.entry else None
        if about is None or not (about.trigger or about.tags):
            return
        with gr.Row(elem_classes="row-end"):
            words = about.trigger or ", ".join(about.tags[:3])
            gr.Markdown(f"{'Trigger words' if about.trigger else 'Trained tags'}: `{words.replace('`', '')}`")
            add = gr.Button("Add to prompt", size="sm", scale=0, min_width=130, elem_id=f"{self.prefix}-trigger")
        prompt = self.context.shared["generate.prompt"]
        add.click(handler(partial(self._add_words, words)), [prompt], [prompt], **QUEUED)

    def _sweep(self) -> None:
        with gr.Row(elem_classes="row-end"):
            span = gr.Textbox(
                SWEEP, label="Weights to sweep", info="start:end:step, or numbers between commas.", max_lines=1,
                interactive=True, elem_id=f"{self.prefix}-range", min_width=200,
            )  # fmt: skip
            sweep = gr.Button("Generate sweep", scale=0, min_width=160, elem_id=f"{self.prefix}-sweep")
        self.context.shared["generate.wire_sweep"](sweep, span, self.row.id)

    # ---- handlers

    def _wire(
        self, event: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any] | None = None
    ) -> None:
        """An input that writes into the row and the text, without laying the rows out anew."""
        event(handler(function), inputs, [*(outputs or []), self.tags], **LAST_COUNTS)

    def _text(self) -> str:
        return to_tags(self.services.active.rows, self.services.adapters)

    def _change(self, **values: Any) -> None:
        self.services.active.change(lambda rows: rows_of.update(rows, self.row.id, **values))

    def _set(self, name: str, value: Any) -> str:
        if value is None:
            return self._text()
        self._change(**{name: value})
        return self._text()

    def _set_weight(self, name: str, value: float | None) -> tuple[Any, str]:
        if value is None:
            return gr.skip(), self._text()
        self._change(**{name: float(value)})
        return _clamped(value), self._text()

    def _link(self, linked: bool) -> tuple[Any, str]:
        row = next((row for row in self.services.active.rows if row.id == self.row.id), self.row)
        self._change(text_encoder=None if linked else row.weight)
        return gr.Row(visible=not linked), self._text()

    def _set_blocks(self, text: str | None) -> str:
        blocks, family = text or "ALL", self.entry.about.family if self.entry else None
        self.services.active.change(lambda rows: rows_of.set_blocks(rows, self.row.id, blocks, family))
        return self._text()

    def _move(self, by: int, count: int) -> tuple[int, str]:
        self.services.active.change(lambda rows: rows_of.move(rows, self.row.id, by))
        return count + 1, self._text()

    def _remove(self, count: int) -> tuple[int, str]:
        self.services.active.change(lambda rows: rows_of.remove(rows, self.row.id))
        return count + 1, self._text()

    def _add_words(self, words: str, prompt: str) -> str:
        text = prompt or ""
        if words.casefold() not in text.casefold():
            text = f"{text.rstrip(' ,')}, {words}" if text.strip() else words
            self.context.state.set("generate.prompt", text)
        gr.Info(f"The prompt holds {words}.", duration=3)
        return text


def _clamped(value: float) -> float:
    """Where the slider stands for a weight: the number beside it may go beyond its ends."""
    return min(max(float(value), _LOWEST), _HIGHEST)
