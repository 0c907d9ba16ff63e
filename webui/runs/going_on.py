"""Going on with a run under other settings: more steps, another rate, other previews."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdlora.errors import ConfigError
from sdlora.runs import changes
from webui.context import EACH_COUNTS, PRIVATE, QUICK, Context, handler
from webui.layout import hidden_text, problems_html
from webui.problems import shown_problems


class GoingOn:
    """A closed section below a run's buttons; the change is checked, written into the run, and the run resumed."""

    def __init__(self, context: Context, selected: gr.Textbox) -> None:
        self.watch, self.runs = context.services.watch, context.workspace.runs
        with gr.Accordion("Continue with changes", open=False, elem_id="runs-go-on") as self.section:
            self.settings = gr.Textbox(
                label="Settings to change", lines=2, max_lines=8, elem_id="runs-go-on-settings",
                info="One a line, as on the command line. Kept in the run, with what was before.",
                placeholder="optimization.steps=600",
            )  # fmt: skip
            self.accept = gr.Checkbox(
                False, label="Take images, captions and masks as they are now", elem_id="runs-go-on-accept",
                info="Where they were changed since the run began, which it otherwise stops at.",
            )  # fmt: skip
            self.go = gr.Button("Continue", elem_id="runs-go-on-go", size="sm")
            self.problems = problems_html("runs-go-on-problems")
        with gr.Column(elem_classes="off-page"):
            self.of = hidden_text("runs-go-on-of", "The run that the settings are for")
        self.typed = gr.State({})  # by run, what was written for another one than is in view
        self.settings.input(None, selected, self.of, js="(run) => [run]", **PRIVATE)
        outputs = [self.settings, self.accept, self.problems]
        inputs = [selected, self.settings, self.accept]
        self.go.click(shown_problems(self._go, len(outputs)), inputs, outputs, **QUICK)

    def follow(self, runs: gr.HTML) -> None:
        """Keep what was written to the run that it was written for. runs: the list in which one is pressed."""
        inputs = [self.of, self.settings, self.typed]
        runs.select(handler(self._turn), inputs, [self.of, self.settings, self.accept, self.typed], **EACH_COUNTS)

    def _turn(self, event: gr.EventData, of: str, lines: str, typed: dict[str, str] | None) -> tuple[Any, ...]:
        pressed = str(event.pressed["run"])
        typed = {**(typed or {}), of: lines or ""}
        return pressed, typed.get(pressed, ""), False, typed

    def _go(self, selected: str, lines: str, accept: bool) -> tuple[Any, ...]:
        overrides = [line.strip() for line in (lines or "").splitlines() if line.strip()]
        run = self.watch.snapshot(now=True).find(selected)
        if run is None:
            raise ConfigError("the run", ["it is not there any more"])
        if run.state.is_active or run.state.status == "queued":
            words = f"{run.name} is {run.state.status}: stop it, or take it out of the queue, first"
            raise ConfigError("the run", [words])
        if not overrides and not accept:
            raise ConfigError("the changes", ["write at least one, such as optimization.steps=600; Resume needs none"])
        after, changed = changes.planned(run.handle.folder, overrides)
        steps = after.optimization.steps
        if run.state.status == "finished" and steps is not None and steps <= run.state.step:
            words = f"{run.name} has done {run.state.step} steps: ask for more, such as optimization.steps="
            raise ConfigError("the changes", [f"{words}{2 * run.state.step}"])
        # Written before the process starts, which may have to wait for its turn.
        changes.apply(run.handle.files, after, changed)
        if accept:
            run.handle.files.accept_changes()
        self.watch.resume(run.handle)
        return "", False, ""
