"""What generates: the form, the start image, and the question of what to do while a training runs.

Made once by the Generate tab; its panels and the Mix tab's buttons generate through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from sdlora import GenerateConfig
from sdlora.config.fields import setting_of
from sdlora.errors import SdloraError
from sdlora.generation.grid.run import plan_grid
from sdlora.library.rows import Rows
from webui.context import QUICK, Context, handler
from webui.form import Form
from webui.generate.request import FIELDS, LEFT_OUT, read_request
from webui.generate.start import StartPanel
from webui.layout import problems_html, small_button
from webui.mix.rows import RowsPanel
from webui.pieces import notes
from webui.problems import listed, panel
from webui.scripts import SETTLED

PREFIX = "generate"
Submit = Callable[[bool], int]
"""Hands a request to the queue; told whether it is to wait for a training."""


class Generating:
    """Components that every handler of a Generate button needs. Lay them out with `lay_out_*`, then `wire`."""

    start: StartPanel
    views: gr.Tabs
    """Result, history, settings out of a picture; made by the panel that shows them."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.services = context.services
        self.rows = RowsPanel.of(context)
        # The request that the question is about, as the function that would hand it in; it stays on the server.
        self.pending = gr.State(None)
        self.axes: list[gr.Dropdown] = []
        """The grid's, which Generate leaves out; made by the panel of the grid."""
        self.form = Form(
            GenerateConfig, PREFIX, leave_out=LEFT_OUT, suggestions={"base_model.model": self.services.models()}
        )

    # ---- layout

    def lay_out_actions(self) -> None:
        """The bar with Generate and Cancel, what is wrong, and the question beside a training."""
        with gr.Column(elem_classes="action-bar"):
            self.problems = problems_html("generate-problems", elem_classes="bare")
            with gr.Row(visible=False, elem_id="generate-training", elem_classes="row-end") as self.training:
                self.training_words = gr.Markdown()
                self.now = small_button("Generate now", "generate-now", 120)
                self.later = small_button("Wait for it to end", "generate-wait", 150)
            with gr.Row(elem_classes="presses"):
                self.go = gr.Button("Generate", variant="primary", elem_id="generate-go", min_width=120)
                self.cancel = gr.Button(
                    "Cancel", variant="stop", elem_id="generate-cancel", visible=False, min_width=90
                )

    def lay_out_start(self) -> None:
        """The start image's panel, with its fields of the form."""
        self.start = StartPanel(self.context, self.form)

    # ---- wiring

    @property
    def inputs(self) -> set[Any]:
        """What a handler that generates takes, as a dict."""
        of_mix = self.context.shared["mix.prompt"]
        return {*self.form.inputs, *self.axes, self.start.is_on, self.start.editor, of_mix}

    @property
    def outputs(self) -> list[Any]:
        """What `begin` and `begin_grid` return values for: the panel of problems first, the pending request last."""
        return [self.problems, self.training, self.training_words, self.views, self.pending]

    def wire(self) -> None:
        """Connect the buttons; Cancel is connected where the request that it is about is shown."""
        self.go.click(handler(self.begin), self.inputs, self.outputs, js=SETTLED, **QUICK)
        for button, wait in ((self.now, False), (self.later, True)):
            button.click(handler(self.decide(wait)), [self.pending], self.outputs, **QUICK)

    # ---- handlers

    def begin(self, values: dict[Any, Any]) -> tuple[Any, ...]:
        """Generate what the form shows, or show what is wrong with it."""
        try:
            config = read_request(self.services, self.form.shown(values), start=self.start.read(values))
        except SdloraError as error:
            return self.shown(listed(error))
        told, *others = self._submit(lambda wait: self.services.images.submit(config, wait=wait))
        if any(values[axis] for axis in self.axes):
            told = notes(["Generate grid, below its axes, generates with them."], "Without the X/Y/Z grid")
        return told, *others

    def begin_grid(
        self, values: dict[Any, Any], axes: list[str], *, run: str | None = None, prompt: str = ""
    ) -> tuple[Any, ...]:
        """Generate a grid of what the form shows; prompt: in place of the form's."""
        shown = self.form.shown(values)
        try:
            config = read_request(
                self.services,
                {**shown, "prompt": prompt or shown["prompt"]},
                start=self.start.read(values),
                one_image=True,
            )
            grid = plan_grid(config, axes, self.services.run_folder(run))
        except SdloraError as error:
            return self.shown(listed(error))
        folder = self.services.run_folder(run)
        return self._submit(lambda wait: self.services.images.submit_grid(grid, run=folder, wait=wait))

    def decide(self, wait: bool) -> Callable[[Submit | None], tuple[Any, ...]]:
        """The handler of an answer to the question."""

        def decide(submit: Submit | None) -> tuple[Any, ...]:
            if submit is not None:
                submit(wait)
            return self._asked_for

        return decide

    def shown(self, problems: list[str]) -> tuple[Any, ...]:
        """The outputs that list problems, close the question and forget the request it was about."""
        return panel(problems, self._place_of), gr.Row(visible=False), "", gr.skip(), None

    def show(self, shown: dict[str, Any]) -> dict[Any, Any]:
        """Fill inputs by dotted name, and remember them."""
        self.services.state.update({f"generate.{name}": value for name, value in shown.items()})
        return self.form.updates(shown)

    def use_rows(self, rows: Rows) -> dict[Any, Any]:
        """Replace the adapters in use; returns the updates that show them."""
        self.services.active.change(lambda _: rows)
        return self.rows.shown()

    @property
    def _asked_for(self) -> tuple[Any, ...]:
        # Asked for with the history in front, it would be generated out of view.
        return "", gr.Row(visible=False), "", gr.Tabs(selected="result"), None

    def _submit(self, submit: Submit) -> tuple[Any, ...]:
        """Ask for it at once; where a training is active, ask the person first."""
        training = self.services.watch.training()
        # With requests under way or waiting the question was answered before: a new one goes behind them.
        if training is not None and not self.services.images.is_busy:
            words = f"**{training}** is training on this machine: generating now slows it and shares its memory."
            return "", gr.Row(visible=True), words, gr.skip(), submit
        submit(False)
        return self._asked_for

    def _place_of(self, problem: str) -> tuple[str, str] | None:
        field = setting_of(problem, FIELDS)
        if field is None or field.name not in self.form.components:
            return None
        section = "start" if field.section == "start" else f"section-{field.section or 'general'}"
        return self.form.element_id(field.name), self.form.element_id(section)
