"""The X/Y/Z grid's inputs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdlora.errors import ConfigError
from sdlora.generation.grid import offers
from webui.context import LAST_COUNTS, QUICK, handler
from webui.generate.generating import Generating
from webui.gradio_quirks import COMES_AND_GOES
from webui.layout import problems_html
from webui.problems import panel
from webui.scripts import SETTLED

_TITLES = {"x": "X, from left to right", "y": "Y, downwards", "z": "Z, one sheet below the other"}


class GridPanel:
    """Three axes with their values; generated as single files and a labelled sheet."""

    def __init__(self, generating: Generating) -> None:
        self.generating = generating
        self.context, self.services = generating.context, generating.services
        self.axes: dict[str, gr.Dropdown] = {}
        self.values: dict[str, gr.Textbox] = {}
        with gr.Accordion("X/Y/Z grid", open=False, elem_id="generate-grid", elem_classes="settings"):
            for name, title in _TITLES.items():
                with gr.Row():
                    self.axes[name] = gr.Dropdown(
                        offers.choices(self.services.active.rows), value="", label=title, info="What changes.",
                        min_width=150, elem_id=f"generate-grid-{name}", interactive=True, scale=2,
                    )  # fmt: skip
                    self.values[name] = gr.Textbox(
                        label=f"Values of {name.upper()}", info="Between commas, or start:end:step.", min_width=150,
                        elem_id=f"generate-grid-{name}-values", max_lines=1, scale=3,
                    )  # fmt: skip
            self.run = gr.Dropdown(
                [], label="Run", info="Whose checkpoints a training-step axis takes.", visible=False,
                elem_id="generate-grid-run", interactive=True, **COMES_AND_GOES,
            )  # fmt: skip
            self.go = gr.Button("Generate grid", elem_id="generate-grid-go")
            self.problems = problems_html("generate-grid-problems")
        generating.axes = list(self.axes.values())
        for name, component in self.values.items():
            self.context.remember(f"generate.grid.{name}", self.axes[name], self._axis)
            self.context.remember(f"generate.grid.{name}.values", component)
        self.context.on_load.append((self._hints, [self.run, *self.axes.values()], self._hinted, None))

    def wire(self) -> None:
        """Connect the inputs."""
        axis_inputs = list(self.axes.values())
        self.context.shared["tab.generate"].select(handler(self._offer), axis_inputs, axis_inputs, **QUICK)
        # The axes name adapters by their place, so every change of the rows changes what is offered.
        self.generating.rows.html["generate"].change(handler(self._offer), axis_inputs, axis_inputs, **QUICK)
        for component in axis_inputs:
            component.input(handler(self._hints), [self.run, *axis_inputs], self._hinted, **LAST_COUNTS)
        inputs = {*self.generating.inputs, *axis_inputs, *self.values.values(), self.run}
        self.go.click(
            handler(self._generate), inputs, [self.problems, *self.generating.outputs[1:]], js=SETTLED, **QUICK
        )

    def _generate(self, values: dict[Any, Any]) -> tuple[Any, ...]:
        try:
            given = [(values[self.axes[name]], values[self.values[name]]) for name in _TITLES]
            chosen = offers.spell(given, self.services.active.rows)
        except ConfigError as error:
            return panel(error.problems), gr.skip(), gr.skip(), gr.skip(), None
        run = values[self.run] if any(f"={offers.CHECKPOINT}=" in text for text in chosen) else None
        return self.generating.begin_grid(values, chosen, run=run)

    @property
    def _hinted(self) -> list[Any]:
        return [self.run, *self.values.values()]

    def _axis(self, axis: str | None) -> Any:
        """An axis's list as it is now, with what is chosen there if that is still offered."""
        offered = offers.choices(self.services.active.rows)
        return gr.Dropdown(choices=offered, value=axis if axis in {value for _, value in offered} else "")

    def _offer(self, *chosen: str | None) -> list[Any]:
        return [self._axis(axis) for axis in chosen]

    def _hints(self, run: str | None, *chosen: str | None) -> list[Any]:
        """What is to be written for each axis, and the list of runs where one is asked for."""
        needs_run = offers.CHECKPOINT in chosen
        runs = [run.name for run in self.services.watch.snapshot().runs] if needs_run else []
        return [
            gr.Dropdown(choices=runs, value=run if run in runs else next(iter(runs), None), visible=needs_run),
            *(gr.Textbox(placeholder=offers.hint(axis), interactive=axis != offers.COMPARE) for axis in chosen),
        ]
