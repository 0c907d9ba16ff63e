"""What a run that has ended is good for: its first and last picture, and ways on to Generate, Mix and Evaluate."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdlora.errors import RunError
from sdlora.launch.runs import RunHandle
from sdlora.library import rows as rows_of
from webui.context import PRIVATE, QUEUED, Context
from webui.layout import html
from webui.problems import shown_in
from webui.runs import view
from webui.scripts import BEFORE_AFTER, PRESSES, TO_THE_EVALUATION


class Outcome:
    """Made inside the layout. What it shows comes with the run's other parts."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.shown = html("runs-outcome", js_on_load=BEFORE_AFTER + PRESSES)

    def wire(self, views: gr.Tabs, problems: gr.HTML) -> None:
        """views: the run's, of which Evaluate is one. Called when all tabs stand."""
        generating = self.context.shared["generate.tab"].generating
        outputs = [*generating.rows.outputs, *generating.form.outputs, self.context.tabs, views, problems]

        def pressed(event: gr.EventData) -> dict[Any, Any]:
            if event.pressed["act"] == "evaluate":
                return {views: gr.Tabs(selected="evaluate")}
            run = RunHandle(self.context.workspace.runs / str(event.pressed["of"]))
            return self._use(run, str(event.pressed["file"]), alone=event.pressed["act"] == "generate")

        # Queued, since the handler tells what it did by `gr.Info`.
        used = self.shown.select(shown_in(problems, pressed), None, outputs, **QUEUED)
        used.then(None, None, None, js=TO_THE_EVALUATION, **PRIVATE)

    def _use(self, run: RunHandle, file: str, *, alone: bool) -> dict[Any, Any]:
        """Generate with a run's file alone, or put it into the mix."""
        generating = self.context.shared["generate.tab"].generating
        if alone and any(str(each.path) == file for each in run.embedding_files()):
            return {**self._first_request(run), self.context.tabs: self.context.go_to("generate")}
        entry = self.context.services.scan().by_path(file)
        # The file's name comes from the browser, so it counts only where it lies in that run.
        if entry is None or run.folder not in entry.path.parents:
            raise RunError("This file is not there any more.")
        others = self.context.services.active.change(lambda rows: rows_of.use(rows, entry, alone=alone))
        if not alone:
            gr.Info(f"{entry.name} is in the mix.", duration=4)
            return {**generating.rows.shown(), self.context.tabs: self.context.go_to("mix")}
        if len(others) > 1:
            gr.Info("The other adapters in use were switched off; Mix has them still.", duration=6)
        shown = self._first_request(run)
        return {**generating.rows.shown(), **shown, self.context.tabs: self.context.go_to("generate")}

    def _first_request(self, run: RunHandle) -> dict[Any, Any]:
        """Generate's inputs, filled for a first picture with what a run trained."""
        state = self.context.state
        folders = str(state.get("generate.embedding_folders") or "")
        first = view.first_request(run, state.get("generate.prompt") or "", folders)
        if "guidance" in first:
            gr.Info("Prompt and settings are those of the run's first preview.", duration=6)
        shown: dict[Any, Any] = self.context.shared["generate.tab"].generating.show(first)
        return shown
