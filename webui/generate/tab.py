"""The Generate tab: prompts and settings on the left, what is generated and was generated on the right."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdlora.errors import DataError
from sdlora.library.prompt_tags import count_prompt_tokens
from webui.context import LAST_COUNTS, QUICK, Context, handler
from webui.generate import view
from webui.generate.generating import PREFIX, Generating
from webui.generate.grid import GridPanel
from webui.generate.results import ResultsPanel
from webui.layout import problems_html, small_button
from webui.mix.rows import is_of
from webui.problems import shown_in
from webui.scripts import SETTLED

SIZES = ["512 x 512", "512 x 768", "768 x 512", "768 x 768", "1024 x 1024", "832 x 1216", "1216 x 832", "896 x 1152",
         "1152 x 896"]  # fmt: skip
OWN_SIZE = "Model's own"
OTHER_SIZE = "Another"
SECTIONS = {
    "": "More",
    "base_model": "Base model: clip skip, VAE, prediction",
    "start": "Start image",
    "second_pass": "Second pass at a higher resolution",
    "compute": "Compute: device, precision, speed",
    "files": "Files: format, metadata",
}


def build(context: Context) -> None:
    """Lay out the tab."""
    context.share("generate.tab", GenerateTab(context))


class GenerateTab:
    """The tab's layout and its small handlers; what generates is `generating`."""

    def __init__(self, context: Context) -> None:
        self.context, self.services = context, context.services
        self.generating = Generating(context)
        self.form = self.generating.form
        gr.HTML("<h2>Generate</h2>", elem_classes="tab-title")
        with gr.Row(elem_classes="page-columns form-and-more"):
            with gr.Column():
                self._lay_out_prompts()
            with gr.Column():
                self._lay_out_settings()
            with gr.Column():
                self.results = ResultsPanel(self.generating)
        self.generating.lay_out_actions()
        for name, component in self.form.components.items():
            context.remember(f"{PREFIX}.{name}", component)
        self._wire()
        self._wire_mix()

    # ---- layout

    def _lay_out_prompts(self) -> None:
        place = self.form.place
        place("base_model.model", label="Base model", info="Built-in, from the models folder, a path or a hub name.")
        prompt = place(
            "prompt", info="What to generate. Takes (weights:1.2), [less] and BREAK.", lines=3, max_lines=10,
            placeholder="a red fox, flat icon",
        )  # fmt: skip
        self.prompt_tokens = gr.HTML(elem_id="generate-prompt-tokens", elem_classes="tokens")
        place("negative", label="Negative prompt", lines=1, max_lines=6)
        self.negative_tokens = gr.HTML(elem_id="generate-negative-tokens", elem_classes="tokens")
        self.context.share("generate.prompt", prompt)
        with gr.Accordion("Adapters in use", open=True, elem_id="generate-adapters"):
            self.generating.rows.place("generate")
            self.to_mix = small_button("Choose adapters in Mix", "generate-to-mix", 190)

    def _lay_out_settings(self) -> None:
        place = self.form.place
        with gr.Row():
            place("sampler", info="By its usual name.", min_width=190, scale=2)
            place("steps", label="Steps", info="Sampling steps.", min_width=90, scale=1)
            place("guidance", label="CFG", info="Guidance scale.", min_width=90, scale=1)
        with gr.Row(elem_classes="row-end"):
            self.size = gr.Dropdown(
                [OWN_SIZE, *SIZES, OTHER_SIZE], value=OWN_SIZE, label="Size", info="Fills in both.", min_width=150,
                scale=2, elem_id="generate-size", interactive=True,
            )  # fmt: skip
            place("width_px", info="Empty: its own.", placeholder="auto", min_width=110)
            place("height_px", info="Empty: its own.", placeholder="auto", min_width=110)
            # page.js has one side follow the other: by events of both, Gradio would go round and round.
            self.context.remember("generate.lock_ratio", gr.Checkbox(
                False, label="Keep ratio", info="Of both sides.", elem_id="generate-lock",
                min_width=170,
            ))  # fmt: skip
            self.swap = gr.Button("Swap", elem_id="generate-swap", min_width=70, scale=0)
        with gr.Row(elem_classes="row-end"):
            place("seed", info="-1 generates one.", min_width=130)
            self.random = gr.Button("Random", elem_id="generate-random", min_width=90, scale=0)
            self.reuse = gr.Button("Reuse", elem_id="generate-reuse", min_width=80, scale=0)
            place("num_images", label="Images", info="How many.", min_width=90)
            place("batch_size", label="At once", info="In a batch.", min_width=90)
        self.seed_problems = problems_html("generate-seed-problems", elem_classes="bare")
        self.generating.lay_out_start()
        self.grid = GridPanel(self.generating)
        self.form.accordions(SECTIONS, columns=2)

    # ---- wiring

    def _wire(self) -> None:
        components = self.form.components
        self.generating.wire()
        self.generating.rows.wire()
        self.grid.wire()
        self.results.wire()
        self.to_mix.click(lambda: gr.Tabs(selected="mix"), None, [self.context.tabs], **QUICK)
        sides = [components["width_px"], components["height_px"]]
        self.size.input(handler(self._set_size), [self.size, *sides], sides, **LAST_COUNTS)
        # `change`, so that sides which a handler filled in, such as Swap's, move the list too.
        gr.on([side.change for side in sides], handler(_size_of), sides, self.size, **LAST_COUNTS)
        self.swap.click(handler(self._swap), sides, sides, **QUICK)
        seeded = [components["seed"], self.seed_problems]
        for button, act in ((self.random, self._random), (self.reuse, self._reuse)):
            button.click(shown_in(self.seed_problems, act), None, seeded, **QUICK)
        model = components["base_model.model"]
        prompts = {components["prompt"]: self.prompt_tokens, components["negative"]: self.negative_tokens}
        for prompt, counter in prompts.items():
            prompt.change(handler(_count), [prompt, model], counter, **LAST_COUNTS)
        model.change(handler(_count_both), [*prompts, model], list(prompts.values()), **LAST_COUNTS)
        self.context.shared["tab.generate"].select(handler(self._models), [model], [model], **QUICK)

    def _wire_mix(self) -> None:
        """Comparison and sweep, whose buttons stand in the Mix tab."""
        shared = self.context.shared
        shared["mix.compare"].click(
            handler(self._compare), self.generating.inputs, self._mix_outputs, js=SETTLED, **QUICK
        )  # fmt: skip
        self.generating.rows.html["mix"].sweep(
            handler(self._sweep), self.generating.inputs, self._mix_outputs, js=SETTLED, **QUICK
        )

    @property
    def _mix_outputs(self) -> list[Any]:
        return [self.context.shared["mix.problems"], *self.generating.outputs[1:], self.context.tabs]

    def _for_mix(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same for the Mix tab: where a training is active, Generate asks what to do."""
        return (*answer, gr.skip() if answer[-1] is None else gr.Tabs(selected="generate"))

    def _sweep(self, values: dict[Any, Any], event: gr.EventData) -> tuple[Any, ...]:
        """A grid over one row's weights."""
        row_id, span = int(event.pressed["row"]), str(event.pressed["span"])
        # Axes count the adapters of the request, which are the rows that are switched on.
        rows = [row for row in self.services.active.rows if row.enabled]
        if not is_of(self.services.active.rows, event.pressed):
            return self._for_mix(self.generating.shown(["this adapter is not in use any more"]))
        index = next((index for index, row in enumerate(rows, 1) if row.id == row_id), None)
        if index is None:
            return self._for_mix(
                self.generating.shown(["this adapter is switched off; switch it on to sweep its weight"])
            )
        prompt = values[self.context.shared["mix.prompt"]]
        return self._for_mix(self.generating.begin_grid(values, [f"adapter{index}.weight={span}"], prompt=prompt))

    def _compare(self, values: dict[Any, Any]) -> tuple[Any, ...]:
        prompt = values[self.context.shared["mix.prompt"]]
        return self._for_mix(self.generating.begin_grid(values, ["compare"], prompt=prompt))

    # ---- small handlers

    def _set_size(self, size: str | None, width: float | None, height: float | None) -> tuple[Any, Any]:
        """The sides of a size. The list follows the sides, so that leaving it as it is changes nothing."""
        if size in (None, "", OTHER_SIZE, _size_of(width, height)):
            return gr.skip(), gr.skip()
        if size == OWN_SIZE:
            return self._keep_sides(None, None)
        width_px, _, height_px = str(size).partition(" x ")
        return self._keep_sides(int(width_px), int(height_px))

    def _swap(self, width: float | None, height: float | None) -> tuple[Any, Any]:
        return self._keep_sides(height, width)

    def _keep_sides(self, width: Any, height: Any) -> tuple[Any, Any]:
        # Only what a person changes is remembered by itself; a handler that fills a field remembers it too.
        self.context.state.update({"generate.width_px": width, "generate.height_px": height})
        return width, height

    def _random(self) -> dict[Any, Any]:
        return self.generating.show({"seed": -1})

    def _reuse(self) -> dict[Any, Any]:
        request = self.services.images.current()
        if request is None or not request.seeds:
            raise DataError("Nothing was generated yet, so there is no seed to reuse.")
        return self.generating.show({"seed": request.seeds[0]})

    def _models(self, chosen: str) -> Any:
        return gr.Dropdown(choices=self.services.models(), value=chosen)


def _size_of(width: float | None, height: float | None) -> str:
    """What the list of sizes shows for both sides."""
    if not width and not height:
        return OWN_SIZE
    size = f"{width or 0:g} x {height or 0:g}"
    return size if size in SIZES else OTHER_SIZE


def _count(prompt: str | None, model: str | None) -> str:
    return str(view.tokens(*count_prompt_tokens(prompt or "", model or "")))


def _count_both(prompt: str | None, negative: str | None, model: str | None) -> tuple[str, str]:
    return _count(prompt, model), _count(negative, model)
