"""The generate tab: prompts and settings on the left, what is generated and was generated on the right."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdlora.config.generate import GenerateConfig
from sdlora.errors import ConfigError
from sdlora.library import rows as rows_of
from sdlora.library.rows import to_tags
from webui.context import LAST_COUNTS, QUICK, Context, handler
from webui.drawing.studio import FIELDS, LEFT_OUT, Studio, count_prompt_tokens
from webui.fields import setting_of
from webui.form import Form
from webui.layout import problems_html
from webui.tabs.adapter_rows import build_rows, shape
from webui.tabs.generate_grid import GridPanel
from webui.tabs.generate_results import ResultsPanel
from webui.tabs.generate_start import StartPanel
from webui.views.problems import panel

SIZES = ["512 x 512", "512 x 768", "768 x 512", "768 x 768", "1024 x 1024", "832 x 1216", "1216 x 832", "896 x 1152",
         "1152 x 896"]  # fmt: skip
OWN_SIZE = "Model's own"
SECTIONS = {
    "": "More",
    "base_model": "Base model: clip skip, VAE, prediction",
    "start": "Start image",
    "second_pass": "Second pass at a higher resolution",
    "compute": "Compute: device, precision, speed",
    "files": "Files: format, metadata",
}
_PREFIX = "generate"


def build(context: Context) -> None:
    """Lay out the tab."""
    context.share("generate.tab", GenerateTab(context))


class GenerateTab:
    """The tab's components and handlers; `draw_grid` serves the Mix tab too."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.studio = Studio.of(context)
        self.changes = shape(context)
        self.form = Form(
            GenerateConfig, _PREFIX, leave_out=LEFT_OUT, suggestions={"base_model.model": self.studio.models()}
        )
        gr.Markdown("## Generate")
        with gr.Row(elem_classes="generate-head"):
            with gr.Column(scale=8, min_width=320):
                self._lay_out_prompts()
            with gr.Column(scale=3, min_width=220, elem_classes="generate-actions"):
                self._lay_out_actions()
        with gr.Row(elem_classes="generate-body"):
            with gr.Column(scale=6, min_width=320, elem_classes="generate-settings"):
                self._lay_out_settings()
            with gr.Column(scale=7, min_width=320, elem_classes="generate-results"):
                self.results = ResultsPanel(context, self.studio)
        self._remember()
        self._wire()
        self.results.wire(self)
        self.grid.wire(self)
        self._wire_mix()

    # ---- layout

    def _lay_out_prompts(self) -> None:
        place = self.form.place
        place("base_model.model", label="Base model", info="Built-in, from the models folder, a path or a hub name.")
        prompt = place(
            "prompt",
            info="What to generate. Takes (weights:1.2), [less] and BREAK.",
            lines=3,
            max_lines=10,
            placeholder="a red fox, flat icon",
        )
        self.prompt_tokens = gr.HTML(elem_id="generate-prompt-tokens", elem_classes="tokens")
        place("negative", label="Negative prompt", lines=1, max_lines=6)
        self.negative_tokens = gr.HTML(elem_id="generate-negative-tokens", elem_classes="tokens")
        self.context.share("generate.prompt", prompt)

    def _lay_out_actions(self) -> None:
        self.go = gr.Button("Generate", variant="primary", size="lg", elem_id="generate-go")
        self.cancel = gr.Button("Cancel", variant="stop", elem_id="generate-cancel", interactive=False)
        with gr.Column(visible=False, elem_id="generate-training") as self.training:
            self.training_words = gr.Markdown()
            self.draw_now = gr.Button("Draw now", size="sm", elem_id="generate-now")
            self.draw_later = gr.Button("Wait for it to end", size="sm", elem_id="generate-wait")
        self.problems = problems_html("generate-problems")

    def _lay_out_settings(self) -> None:
        place = self.form.place
        with gr.Accordion("Adapters in use", open=True, elem_id="generate-adapters", elem_classes="generate-adapters"):
            build_rows(self.context, "generate", full=False)
            self.to_mix = gr.Button("Choose adapters in Mix", size="sm", elem_id="generate-to-mix")
        with gr.Row():
            place("sampler", info="By its usual name.", min_width=190, scale=2)
            place("steps", label="Steps", info="Sampling steps.", min_width=90, scale=1)
            place("guidance", label="CFG", info="Guidance scale.", min_width=90, scale=1)
        with gr.Row(elem_classes="row-end"):
            self.size = gr.Dropdown(
                [OWN_SIZE, *SIZES], value=OWN_SIZE, label="Size", info="Fills in both.", min_width=150, scale=2,
                elem_id="generate-size", interactive=True,
            )  # fmt: skip
            place("width_px", info="Empty: its own.", placeholder="auto", min_width=110)
            place("height_px", info="Empty: its own.", placeholder="auto", min_width=110)
            self.swap = gr.Button("Swap", elem_id="generate-swap", min_width=70, scale=0)
        with gr.Row(elem_classes="row-end"):
            place("seed", info="-1 generates one.", min_width=130)
            self.random = gr.Button("Random", elem_id="generate-random", min_width=90, scale=0)
            self.reuse = gr.Button("Reuse", elem_id="generate-reuse", min_width=80, scale=0)
            place("num_images", label="Images", info="How many.", min_width=90)
            place("batch_size", label="At once", info="In a batch.", min_width=90)
        self.start = StartPanel(self.context, self.studio, self.form)
        self.grid = GridPanel(self.context, self.studio)
        self.form.accordions(SECTIONS, columns=2)

    def _remember(self) -> None:
        for name, component in self.form.components.items():
            self.context.remember(f"generate.{name}", component)

    # ---- wiring

    @property
    def inputs(self) -> set[Any]:
        """What a handler that generates takes, as a dict."""
        return {*self.form.inputs, self.start.is_on, self.start.editor, self.context.shared["mix.prompt"]}

    @property
    def outputs(self) -> list[Any]:
        """What `start` and its kin return."""
        return [self.problems, self.training, self.training_words]

    def _wire(self) -> None:
        components = self.form.components
        self.pending = gr.State(None)
        self.go.click(handler(self._draw), self.inputs, [*self.outputs, self.pending], **QUICK)
        for button, wait in ((self.draw_now, False), (self.draw_later, True)):
            button.click(handler(self._decided(wait)), [self.pending], [*self.outputs, self.pending], **QUICK)
        self.to_mix.click(lambda: gr.Tabs(selected="mix"), None, [self.context.tabs], **QUICK)
        sides = [components["width_px"], components["height_px"]]
        self.size.input(handler(self._set_size), [self.size], sides, **LAST_COUNTS)
        self.swap.click(handler(self._swap), sides, sides, **QUICK)
        self.random.click(handler(self._random), None, [components["seed"]], **QUICK)
        self.reuse.click(handler(self._reuse), None, [components["seed"]], **QUICK)
        for name, counter in (("prompt", self.prompt_tokens), ("negative", self.negative_tokens)):
            gr.on(
                [components[name].change, components["base_model.model"].change],
                handler(_count), [components[name], components["base_model.model"]], [counter],
                **LAST_COUNTS,
            )  # fmt: skip
        empty = [field.name for field in FIELDS if field.kind == "number" and field.is_optional]
        self.context.on_load.append((self._kept_numbers(empty), [], [components[name] for name in empty]))
        self.context.shared["tab.generate"].select(
            handler(self._models), [components["base_model.model"]], [components["base_model.model"]], **QUICK
        )

    def _wire_mix(self) -> None:
        """Comparison and sweep, whose buttons stand in the Mix tab."""
        shared = self.context.shared
        shared["generate.wire_sweep"] = self._wire_sweep
        shared["mix.compare"].click(handler(self._compare), self.inputs, self._mix_outputs, **QUICK)

    @property
    def _mix_outputs(self) -> list[Any]:
        shared = self.context.shared
        return [shared["mix.problems"], self.training, self.training_words, self.pending, self.context.tabs]

    def _for_mix(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same for the Mix tab: where a training is active, Generate asks what to do."""
        return (*answer, gr.skip() if answer[-1] is None else gr.Tabs(selected="generate"))

    def _wire_sweep(self, button: gr.Button, span: gr.Textbox, row_id: int) -> None:
        shared = self.context.shared

        def sweep(values: dict[Any, Any]) -> tuple[Any, ...]:
            rows = [row for row in self.studio.active.rows if row.enabled]
            index = next((index for index, row in enumerate(rows, 1) if row.id == row_id), None)
            if index is None:
                problems = ["this adapter is switched off; switch it on to sweep its weight"]
                return self._for_mix((*self._shown(problems), None))
            axes, prompt = [f"adapter{index}.weight={values[span]}"], values[shared["mix.prompt"]]
            return self._for_mix(self.draw_grid(values, axes, prompt=prompt))

        button.click(handler(sweep), {*self.inputs, span}, self._mix_outputs, **QUICK)

    # ---- handlers that generate

    def _draw(self, values: dict[Any, Any]) -> tuple[Any, ...]:
        """Draw what the form shows, or show what is wrong with it."""
        try:
            config = self.studio.request(self.form.shown(values), start=self.start.read(values))
        except ConfigError as error:
            return (*self._shown(error.problems), None)
        return self._begin(lambda wait: self.studio.drawings.submit(config, wait=wait))

    def _compare(self, values: dict[Any, Any]) -> tuple[Any, ...]:
        return self._for_mix(self.draw_grid(values, ["compare"], prompt=values[self.context.shared["mix.prompt"]]))

    def draw_grid(
        self, values: dict[Any, Any], axes: list[str], *, run: str | None = None, prompt: str = ""
    ) -> tuple[Any, ...]:
        """Draw a grid of what the form shows; prompt: in place of the form's."""
        shown = self.form.shown(values)
        try:
            config = self.studio.request(
                {**shown, "prompt": prompt or shown["prompt"]}, start=self.start.read(values), one_image=True
            )
            grid = self.studio.grid(config, axes, run)
        except ConfigError as error:
            return (*self._shown(error.problems), None)
        gr.Info(f"{len(grid.cells())} images asked for.", duration=4)
        folder = self.studio.run_folder(run)
        return self._begin(lambda wait: self.studio.drawings.submit_grid(grid, run=folder, wait=wait))

    def _begin(self, submit: Any) -> tuple[Any, ...]:
        """Ask for it at once; where a training is active, ask the person first."""
        training = self.studio.active_training()
        if training is not None and not self.studio.drawings.is_busy:
            words = f"**{training}** is training on this machine: drawing now slows it and shares its memory."
            return "", gr.Column(visible=True), words, submit
        submit(False)
        return "", gr.Column(visible=False), "", None

    def _decided(self, wait: bool) -> Any:
        def decide(submit: Any) -> tuple[Any, ...]:
            if submit is not None:
                submit(wait)
            return "", gr.Column(visible=False), "", None

        return decide

    def _shown(self, problems: list[str]) -> tuple[str, Any, str]:
        return panel(problems, self._place_of), gr.Column(visible=False), ""

    def _place_of(self, problem: str) -> tuple[str, str] | None:
        field = setting_of(problem, FIELDS)
        if field is None or field.name not in self.form.components:
            return None
        section = "start" if field.section == "start" else f"section-{field.section or 'general'}"
        return self.form.element_id(field.name), self.form.element_id(section)

    # ---- small handlers

    def _set_size(self, size: str) -> tuple[Any, Any]:
        sides = (None, None) if size == OWN_SIZE else tuple(int(side) for side in size.split(" x "))
        return self._keep_sides(*sides)

    def _swap(self, width: float | None, height: float | None) -> tuple[Any, Any]:
        return self._keep_sides(height, width)

    def _keep_sides(self, width: Any, height: Any) -> tuple[Any, Any]:
        self.studio.state.update({"generate.width_px": width, "generate.height_px": height})
        return width, height

    def _random(self) -> int:
        self.studio.state.set("generate.seed", -1)
        return -1

    def _reuse(self) -> Any:
        drawing = self.studio.drawings.current()
        if drawing is None or not drawing.progress.seeds:
            raise gr.Error("Nothing was generated yet, so there is no seed to reuse.", print_exception=False)
        seed = self.results.selected_seed(drawing)
        self.studio.state.set("generate.seed", seed)
        return seed

    def _kept_numbers(self, names: list[str]) -> Any:
        """Optional numbers once more: Gradio shows one that begins empty as 0 until it is told that it is empty."""
        return lambda: [self.studio.state.get(f"generate.{name}") for name in names]

    def _models(self, chosen: str) -> Any:
        return gr.Dropdown(choices=self.studio.models(), value=chosen)

    def show(self, shown: dict[str, Any]) -> dict[Any, Any]:
        """Fill inputs by dotted name, and remember them."""
        self.studio.state.update({f"generate.{name}": value for name, value in shown.items()})
        return self.form.updates(shown)

    def use_rows(self, rows: rows_of.Rows) -> str:
        """Replace the adapters in use; returns their text."""
        return to_tags(self.studio.active.change(lambda _: rows), self.studio.adapters)


def _count(prompt: str | None, model: str | None) -> str:
    tokens, room = count_prompt_tokens(prompt or "", model or "")
    return f"<span>{tokens} of {room} tokens</span>"
