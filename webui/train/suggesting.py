"""Suggested settings for the chosen dataset: shown with their reasons first, taken into the form by a second press."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import Suggestion
from sdlora.config.presets import SUBJECTS, Subject
from sdlora.errors import SdloraError
from sdlora.launch import suggestions
from webui.layout import html, problems_html, small_button
from webui.problems import panel
from webui.scripts import PRESSES
from webui.train import view
from webui.train.sheet import Sheet

_ON_THE_PAGE = {"--trigger": "Trigger", "--memory": "Memory", "--for": "What they teach", "--base": "Base model"}
"""What the command's options are called here."""


class Suggesting:
    """The inputs of a suggestion, and what was suggested last. Made inside the layout."""

    def __init__(self, jobs: Path, labels: Mapping[str, str]) -> None:
        """labels: of the settings, by dotted name."""
        self._jobs, self._labels = jobs, labels
        self.found = gr.State(None)  # the folder that was asked for, and its suggestion
        with gr.Accordion("Suggest settings for these pictures", open=False, elem_id="train-suggest-box"):
            with gr.Row():
                self.subject = gr.Dropdown(
                    list(SUBJECTS),
                    value=SUBJECTS[0],
                    label="What they teach",
                    elem_id="train-suggest-for",
                    filterable=False,
                    interactive=True,
                    min_width=130,
                )
                self.memory = gr.Number(
                    None,
                    label="Memory (GiB)",
                    info="Of the card; the settings keep to it. Empty: not looked at.",
                    elem_id="train-suggest-memory",
                    min_width=130,
                )
                self.keep_base = gr.Checkbox(
                    False,
                    label="Keep the base model",
                    info="Off: SD 1.5 or SDXL, by the pictures' size.",
                    elem_id="train-suggest-keep-base",
                    min_width=130,
                )
            self.ask = small_button("Suggest settings", "train-suggest", 140)
            self.problems = problems_html("train-suggest-problems", elem_classes="bare")
            self.shown = html("train-suggestion", js_on_load=PRESSES)

    @property
    def inputs(self) -> list[Any]:
        """What `suggest` takes after the sheet."""
        return [self.subject, self.memory, self.keep_base]

    @property
    def outputs(self) -> list[Any]:
        """What `suggest` answers for."""
        return [self.found, self.shown, self.problems]

    def suggest(
        self, sheet: Sheet, standing: Mapping[str, Any], subject: Subject, memory: float | None, keep_base: bool
    ) -> dict[Any, Any]:
        """Have the pictures looked at. standing: what the form's preset shows of itself; what differs was chosen."""
        folder, trigger = (str(sheet.settings[name] or "").strip() for name in ("images.folder", "captions.trigger"))
        if not folder:
            return self.refused(["Choose a dataset first: the suggestion is made from its pictures."])
        try:
            found = suggestions.suggest(
                folder,
                subject,
                base=str(sheet.settings["base_model.model"] or "") if keep_base else None,
                memory_gib=memory,
                trigger=trigger if trigger and trigger != standing["captions.trigger"] else None,
                jobs=self._jobs,
            )
        except SdloraError as error:
            return self.refused(_as_on_the_page(str(error)))
        return {self.found: (folder, found), self.shown: view.suggestion(found, self._labels), self.problems: ""}

    def is_of(self, sheet: Sheet, found: tuple[str, Suggestion]) -> bool:
        """Whether the suggestion that is shown was made from the pictures that the form names now."""
        return found[0] == str(sheet.settings["images.folder"] or "").strip()

    def refused(self, problems: list[str]) -> dict[Any, Any]:
        """Say why there is no suggestion."""
        return {self.found: None, self.shown: "", self.problems: panel(problems)}


def _as_on_the_page(error: str) -> list[str]:
    """The problems of the command's message, `--memory has 1 problem:` and a line each, by the label of the field."""
    about = re.fullmatch(r"(--\w+) has \d+ problems?:\n(.+)", error, re.DOTALL)
    if about is None:
        return [error]
    label = _ON_THE_PAGE.get(about[1], about[1])
    return [f"{label}: {line.strip()}" for line in about[2].splitlines()]
