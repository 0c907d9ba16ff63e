"""The Evaluate view of a run: start it, follow it, see what it found, promote a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from sdlora import EvaluateConfig
from sdlora.config.fields import fields
from sdlora.errors import ConfigError
from sdlora.launch.evaluations import Evaluations
from sdlora.launch.runs import RunHandle
from webui.context import QUICK, Context
from webui.datasets.typed import NUMBERED
from webui.gradio_quirks import COMES_AND_GOES
from webui.layout import html, live_html, problems_html, small_button
from webui.problems import shown_in
from webui.scripts import PRESSES

FEATURES = ("auto", "latents", "openai/clip-vit-large-patch14", "facebook/dinov2-base")
_FIELDS = {field.name: field for field in fields(EvaluateConfig, ())}


class EvaluateView:
    """Made inside the run's views. What it shows comes with the run's other parts."""

    def __init__(self, context: Context, evaluations: Evaluations) -> None:
        self.context, self.evaluations = context, evaluations
        self.standing = live_html("runs-evaluate-state", elem_classes="bare")
        with gr.Row(elem_classes="bar"):
            self.start = small_button("Evaluate", "runs-evaluate", 110, variant="primary", interactive=False)
            self.cancel = small_button("Cancel", "runs-evaluate-cancel", 90, visible=False)
        self.problems = problems_html("runs-evaluate-problems", elem_classes="bare")
        with gr.Accordion("Settings of the evaluation", open=False, elem_id="runs-evaluate-settings"):
            remember = context.remember
            with gr.Row():
                self.features = remember("evaluate.features", gr.Dropdown(
                    list(FEATURES), value="auto", label="What compares images", info=_FIELDS["features"].info,
                    elem_id="runs-evaluate-features", interactive=True, min_width=220, **COMES_AND_GOES,
                ))  # fmt: skip
                self.seeds = remember("evaluate.num_seeds", gr.Number(
                    EvaluateConfig().num_seeds, label="Seeds", info=_FIELDS["num_seeds"].info, precision=0,
                    elem_id="runs-evaluate-seeds", min_width=160,
                ))  # fmt: skip
            self.settings = remember("evaluate.settings", gr.Textbox(
                label="More settings", lines=2, max_lines=8, elem_id="runs-evaluate-lines",
                info="One a line, as on the command line; `sdlora explain evaluate` lists all.",
                placeholder="steps=20",
            ))  # fmt: skip
        self.result = html("runs-evaluation", js_on_load=PRESSES)

    def wire(
        self,
        inputs: Sequence[Any],
        told: Sequence[Any],
        tell: Callable[..., dict[Any, Any]],
        run_of: Callable[[str | None], RunHandle],
    ) -> None:
        """tell: gives the updates of `told` from `inputs`, of which the first is the run's name; run_of: its handle."""
        dataset = self.context.shared["dataset.tab"]
        editor = dataset.browser.editor

        def begin(features: str | None, seeds: float | None, lines: str | None, *shown: Any) -> dict[Any, Any]:
            self._begin(run_of(shown[0]), features, seeds, lines)
            return tell(*shown)

        def cancel(*shown: Any) -> dict[Any, Any]:
            self.evaluations.cancel(run_of(shown[0]))
            return tell(*shown)

        def pressed(event: gr.EventData, *given: Any) -> dict[Any, Any]:
            """Edit the caption of an image that stands out, or promote a checkpoint."""
            written, shown = given[: len(editor.written)], given[len(editor.written) :]
            if "image" in event.pressed:
                name, image = str(event.pressed["of"]), str(event.pressed["image"])
                return {**dataset.with_image(written, name, image), self.context.tabs: self.context.go_to("dataset")}
            self.evaluations.promote(run_of(shown[0]), str(event.pressed["checkpoint"]))
            return tell(*shown)

        outputs = [*told, self.problems]
        given = [self.features, self.seeds, self.settings, *inputs]
        self.start.click(shown_in(self.problems, begin), given, outputs, **QUICK)
        self.cancel.click(shown_in(self.problems, cancel), list(inputs), outputs, **QUICK)
        outputs += [*dataset.views, self.context.tabs]
        given = [*editor.written, *inputs]
        self.result.select(shown_in(self.problems, pressed), given, outputs, js=NUMBERED, **QUICK)

    def _begin(self, run: RunHandle, features: str | None, seeds: float | None, lines: str | None) -> None:
        overrides = [line.strip() for line in (lines or "").splitlines() if line.strip()]
        compares = (features or "auto").strip()
        chosen = {"features": compares} | ({} if seeds is None else {"num_seeds": str(int(seeds))})
        written = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in overrides)}
        twice = [name for name, value in chosen.items() if written.get(name, value) != value]
        if twice:
            words = "{0}: {1} in its field, {2} under More settings: write it in one place"
            problems = [words.format(name, chosen[name], written[name]) for name in twice]
            raise ConfigError("the evaluation", problems)
        if seeds is not None and "num_seeds" not in written:
            overrides.append(f"num_seeds={int(seeds)}")
        self.evaluations.start(run, overrides, compares)
