"""One edit to many captions: preview, apply, and Undo beside the dataset's summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sdlora.data.sets import folders, listing
from sdlora.data.sets.edits import OPERATIONS, Edit, Rewritten, make_edit, plan_edit
from sdlora.data.sets.listing import Item
from sdlora.errors import DataError
from sdlora.words import count
from webui.context import LAST_COUNTS, QUICK, Context, handler
from webui.datasets import view
from webui.datasets.browser import Browser, as_filter
from webui.gradio_quirks import update_in_browser
from webui.layout import hidden_text, problems_html, small_button
from webui.problems import shown_in

_SAME = update_in_browser()
Planned = tuple[str, list[Rewritten]]
"""The dataset that a preview is of, and what it showed."""
NOTHING: Planned = ("", [])
SCOPES = ("all images", "images that pass the filter")
_AS_JSON = "(...values) => [JSON.stringify(values)]"
_OUTDATED = f"""(...values) => JSON.stringify(values.slice(0, -1)) === values.at(-1) ? [{_SAME}, {_SAME}]
  : [{update_in_browser(value="Apply", interactive=False)}, ""]"""
"""In the page itself: an answer of the server could come after the next preview and take it away. A list that was
opened and left leaves the preview as it is."""


class BulkPanel:
    """Made inside the tab's layout. Apply makes exactly what the preview showed, or refuses."""

    def __init__(self, context: Context, chosen: gr.Dropdown, browser: Browser) -> None:
        self.context = context
        self.chosen = chosen
        self.browser = browser
        self.planned = gr.State(NOTHING)
        with gr.Column(elem_classes="off-page"):
            self.planned_for = hidden_text("dataset-bulk-planned-for", "What the preview is for")
        with gr.Accordion("Edit many captions", open=False, elem_id="dataset-bulk-box"):
            self._lay_out()
        self._wire()

    def _lay_out(self) -> None:
        with gr.Row():
            self.operation = gr.Dropdown(
                [(words, name) for name, words in OPERATIONS.items()],
                value="front",
                label="What to do",
                info="One step at a time; each can be undone.",
                elem_id="dataset-bulk-operation",
                filterable=False,
                min_width=220,
            )
            self.text = gr.Textbox(
                label="Text",
                info="A trigger word, or tags with commas between.",
                elem_id="dataset-bulk-text",
                max_lines=1,
                min_width=200,
            )
            self.replacement = gr.Textbox(
                label="Replace by",
                info="Empty removes it.",
                elem_id="dataset-bulk-replacement",
                max_lines=1,
                min_width=200,
                visible=False,
            )
        with gr.Row():
            self.scope = gr.Radio(
                SCOPES,
                value=SCOPES[0],
                label="Which captions",
                info="The filter is above the images.",
                elem_id="dataset-bulk-scope",
            )
            self.is_regex = gr.Checkbox(
                label="Regular expression",
                info="Python's syntax; \\1 is the first group.",
                elem_id="dataset-bulk-regex",
                visible=False,
            )
            self.match_case = gr.Checkbox(
                label="Match case", info="Off: capitals don't matter.", elem_id="dataset-bulk-case", visible=False
            )
        with gr.Row(elem_classes="bar"):
            self.preview = small_button("Preview", "dataset-bulk-preview", 100)
            self.apply = small_button("Apply", "dataset-bulk-apply", 100, interactive=False)
        self.problems = problems_html("dataset-bulk-problems", elem_classes="bare")
        self.result = gr.HTML("", elem_id="dataset-bulk-result")

    @property
    def _fields(self) -> list[Any]:
        return [self.operation, self.text, self.replacement, self.is_regex, self.match_case, self.scope]

    @property
    def views(self) -> list[Any]:
        """What changes with the dataset."""
        return [self.planned, self.apply, self.result, self.problems]

    def _wire(self) -> None:
        self.operation.input(
            handler(self._shape),
            self.operation,
            [self.text, self.replacement, self.is_regex, self.match_case],
            **LAST_COUNTS,
        )
        planned_for = [*self._fields, *self.browser.filter]
        changed = [field.input for field in planned_for]
        outdated = [self.apply, self.result]
        gr.on(changed, None, [*planned_for, self.planned_for], outdated, js=_OUTDATED, api_visibility="private")
        asked = [self.preview.click, self.text.submit]
        noted = gr.on(asked, None, planned_for, self.planned_for, js=_AS_JSON, api_visibility="private")
        noted.then(shown_in(self.problems, self._preview), [self.chosen, *planned_for], self.views, **QUICK)
        self.apply.click(
            shown_in(self.problems, self._apply),
            [self.chosen, self.planned, *self.browser.around],
            [*self.views, *self.browser.views],
            **QUICK,
        )
        # Undo may take back what is told here, and a preview is of the captions as they were.
        for event in self.browser.changes_images:
            event.then(handler(self._outdated), None, self.views, **QUICK)

    def opened(self) -> dict[Any, Any]:
        """Another dataset: what was planned is of no use."""
        return self._outdated()

    def _outdated(self) -> dict[Any, Any]:
        return {
            self.planned: NOTHING,
            self.apply: gr.Button("Apply", interactive=False),
            self.result: "",
            self.problems: "",
        }

    def _shape(self, operation: str) -> dict[Any, Any]:
        """Only the fields that this operation reads."""
        replaces = operation == "replace"
        return {
            self.text: gr.Textbox(visible=operation != "dedupe"),
            self.replacement: gr.Textbox(visible=replaces),
            self.is_regex: gr.Checkbox(visible=replaces),
            self.match_case: gr.Checkbox(visible=replaces),
        }

    def _preview(
        self,
        name: str,
        operation: str,
        text: str,
        replacement: str,
        is_regex: bool,
        match_case: bool,
        scope: str,
        *wanted: Any,
    ) -> dict[Any, Any]:
        items: Sequence[Item] = listing.read(folders.folder_of(self.context.workspace.datasets, name))
        if scope == SCOPES[1]:
            passes = as_filter(*wanted).passes
            items = [item for item in items if passes(item)]
        planned = plan_edit(items, Edit(operation, text or "", replacement or "", is_regex, match_case))
        words = f"Apply to {count(len(planned), 'caption')}"
        return {
            self.planned: (name, planned),
            self.apply: gr.Button(words if planned else "Apply", interactive=bool(planned)),
            self.result: view.edit_preview(planned, len(items)),
        }

    def _apply(self, name: str, planned: Planned, *around: Any) -> dict[Any, Any]:
        folder = folders.folder_of(self.context.workspace.datasets, name)
        previewed, edits = planned
        if edits and previewed != name:  # chosen since, and not shown yet
            raise DataError(f"This was previewed for {previewed}, and {name} is chosen now: preview again.")
        made = count(make_edit(folder, edits), "caption")
        return {**self._outdated(), self.result: view.edited(made), **self.browser.refreshed(folder, *around)}
