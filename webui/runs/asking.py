"""Pictures that a person asks the running trainer for: any prompt, drawn between two steps by the adapter as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from sdlora.errors import ConfigError
from sdlora.launch.runs import RunHandle
from webui.context import QUEUED
from webui.layout import html, problems_html
from webui.problems import shown_in


class AskedPictures:
    """Below a run's previews. The field and its button are there while the run trains; the pictures stay."""

    def __init__(self) -> None:
        self.prompts = gr.Textbox(
            label="Draw now", lines=2, max_lines=6, visible=False, elem_id="runs-draw-prompts",
            info="One picture a line, drawn after the current step; options as in preview prompts: --w 768 --am 0.7",
            placeholder="a fox at night --d 7",
        )  # fmt: skip
        self.draw = gr.Button("Draw", elem_id="runs-draw", visible=False, size="sm")
        self.problems = problems_html("runs-draw-problems", elem_classes="bare")
        self.pictures = html("runs-asked")

    def wire(
        self,
        inputs: Sequence[Any],
        told: Sequence[Any],
        tell: Callable[..., dict[Any, Any]],
        run_of: Callable[[str | None], RunHandle],
    ) -> None:
        """tell: gives the updates of `told` from `inputs`, of which the first is the run's name; run_of: its handle."""

        def ask(lines: str | None, *shown: Any) -> dict[Any, Any]:
            prompts = [line.strip() for line in (lines or "").splitlines() if line.strip()]
            if not prompts:
                raise ConfigError("the pictures", ["write what to draw, one picture a line"])
            run_of(shown[0]).draw(prompts)
            gr.Info(f"Asked for; drawn after the current step: {escape('; '.join(prompts))}")
            return tell(*shown)

        self.draw.click(shown_in(self.problems, ask), [self.prompts, *inputs], [*told, self.problems], **QUEUED)
