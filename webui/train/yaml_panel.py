"""The YAML panel: the form's settings as a file, to edit and apply; and files of other trainers to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import SdloraError, TrainConfig
from sdlora.errors import ConfigError
from sdlora.imports.read import settings_as_yaml
from webui.layout import hidden_text, problems_html
from webui.problems import listed
from webui.train.report import Reporter, from_yaml, left_out
from webui.train.sheet import Sheet

Updates = Mapping[Any, Any]
"""What a handler answers: new values by component."""


class YamlPanel:
    """Made inside the layout. What is typed counts once it is applied: until then no run starts."""

    def __init__(
        self,
        reporter: Reporter,
        runs_folder: Path,
        fill: Callable[[TrainConfig, Sheet], Updates],
        report: Callable[[Sheet], Updates],
    ) -> None:
        """fill: shows a configuration in the form instead of a sheet; report: says anew what follows from a sheet."""
        self._reporter, self._runs_folder, self._fill, self._report = reporter, runs_folder, fill, report
        with gr.Column(elem_classes="off-page"):
            self.base = hidden_text("train-yaml-base", "The YAML that agrees with the form")
        with gr.Accordion("YAML", open=False, elem_id="train-yaml-box"):
            self.text = gr.Textbox(
                label="Settings as YAML",
                info="What differs from the defaults. Edit it and apply it to the form.",
                lines=12,
                max_lines=30,
                elem_id="train-yaml",
                elem_classes="code",
                interactive=True,
            )
            with gr.Row():
                self.to_form = gr.Button("Apply to form", elem_id="train-yaml-apply")
                self.from_form = gr.Button("Show the form's settings", elem_id="train-yaml-refresh")
                self.file = gr.UploadButton(
                    "Import a file", file_types=[".yaml", ".yml", ".json", ".toml"], elem_id="train-import"
                )
            self.problems = problems_html("train-yaml-problems", elem_classes="bare")
            gr.Markdown(
                "Imports YAML of sdlora and settings of kohya_ss, sd-scripts, OneTrainer, ai-toolkit and SimpleTuner."
            )

    def apply(self, sheet: Sheet) -> dict[Any, Any]:
        """Fill the form with what was typed, or list what is wrong with it."""
        try:
            config = from_yaml(sheet.yaml)
        except ConfigError as error:
            return {**self._refused(error), **self._report(sheet)}
        return self._taken(config, self._fill(config, sheet))

    def follow(self, sheet: Sheet) -> dict[Any, Any]:
        """Show the form's settings in place of what was typed."""
        return {self.problems: "", **self._report(sheet.agreeing())}

    def show(self, now: str | None, said: str | None) -> dict[Any, Any]:
        """The form's settings as a file, where they have changed; `None` leaves alone what the page shows."""
        return {} if now in (None, said) else {self.text: now, self.base: now}

    def take_file(self, uploaded: str, fill: Callable[[TrainConfig], Updates]) -> dict[Any, Any]:
        """Fill the form with a file of any trainer that is known, or list what is wrong with it."""
        try:
            config = from_yaml(settings_as_yaml(Path(uploaded)))
            return self._taken(config, fill(config))
        except SdloraError as error:
            return self._refused(error)

    def _taken(self, config: TrainConfig, shown: Updates) -> dict[Any, Any]:
        return {**shown, self.problems: left_out(config, self._runs_folder)}

    def _refused(self, error: SdloraError) -> dict[Any, Any]:
        return {self.problems: self._reporter.panel(listed(error))}
