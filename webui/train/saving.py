"""Saving the form's settings as a preset of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.config import presets
from sdlora.config.presets import Preset
from sdlora.errors import ConfigError
from webui.layout import problems_html
from webui.train.report import Draft


class PresetSaving:
    """A closed section of the form. Made inside the layout."""

    def __init__(self, folder: Path) -> None:
        """folder: of the presets of one's own."""
        self._folder = folder
        with gr.Accordion("Save as a preset", open=False):
            with gr.Row():
                self.name = gr.Textbox(
                    label="Preset's name", info="Letters, digits, spaces.", elem_id="train-save-name"
                )
                self.purpose = gr.Textbox(
                    label="Purpose", info="One line, shown in the list of presets.", elem_id="train-save-purpose"
                )
            self.problems = problems_html("train-save-problems", elem_classes="bare")
            self.button = gr.Button("Save", elem_id="train-save")

    def save(self, draft: Draft, name: str, purpose: str) -> Preset:
        """Write the preset and say so. Raises ConfigError where the form, or the name, makes none."""
        if draft.config is None:
            raise ConfigError("the form", draft.problems)
        saved = presets.save(presets.portable(draft.config), name, self._folder, purpose)
        gr.Info(f"Saved as {saved.path.stem}.")
        return saved

    def emptied(self) -> dict[Any, Any]:
        """The inputs as they begin."""
        return {self.name: "", self.purpose: ""}
