"""The settings behind the first ones: a section each, and a search that opens those in which something is found."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.form import Form
from webui.layout import html
from webui.train import view

SECTIONS = {
    "": "General",
    "base_model": "Base model",
    "captions": "Captions",
    "adapter": "Adapter: rank, layers, algorithm",
    "optimization": "Optimization: length, batch, learning rate, optimizer, precision, device",
    "objective": "Objective: loss, noise, timesteps, prior preservation",
    "images": "Images: sizes, buckets, masks, cache",
    "validation": "Validation",
    "previews": "Previews",
    "outputs": "Outputs: checkpoints, file format, metadata",
}


class AdvancedSettings:
    """Places all settings of a form that are not placed yet. Made inside the layout."""

    def __init__(self, form: Form) -> None:
        self._form = form
        gr.Markdown("### Advanced")
        self.query = gr.Textbox(
            label="Find a setting",
            info="By name or by what it does, for example: learning rate, mask, memory.",
            elem_id="train-search",
        )
        self.found = html("train-found")
        with gr.Column(elem_id="train-advanced"):
            # What is in view above, so that a search hides nothing of it.
            placed = set(form.components)
            form.accordions(SECTIONS, columns=2)
            self.fields = [field for field in form.fields if field.name not in placed]

    @property
    def outputs(self) -> list[Any]:
        """What `search` answers for."""
        return [self.found, *self._form.sections.values()]

    def search(self, query: str) -> dict[Any, Any]:
        """Leave only what is found in view, its sections open; everything for an empty query."""
        found = view.matches(query, self.fields)
        sections = {field.section for field in found}
        updates: dict[Any, Any] = {self.found: view.only_these(found, self.fields, query, self._form.element_id)}
        if query.strip():
            updates |= {box: gr.update(open=name in sections) for name, box in self._form.sections.items()}
        return updates
