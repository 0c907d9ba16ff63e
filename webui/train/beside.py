"""What stands beside the form: problems, summary, differences, command, and the buttons that begin a run."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.layout import html, problems_html
from webui.scripts import PRESSES
from webui.train.report import Report


class BesideTheForm:
    """Shows reports. Made inside the layout, its buttons by `lay_out_actions`."""

    def __init__(self) -> None:
        self.said = gr.State(None)
        """The report that the page shows."""
        self.problems = problems_html("train-problems", elem_classes="bare")
        self.summary = html("train-summary")
        with gr.Accordion("What differs from the preset", open=True, elem_id="train-differences-box"):
            self.differences = html("train-differences", js_on_load=PRESSES)
        self.command = gr.Textbox(
            label="Command",
            info="Trains exactly this in a terminal: the preset and every setting that differs from it.",
            lines=2,
            max_lines=8,
            interactive=False,
            buttons=["copy"],
            elem_id="train-command",
        )

    def lay_out_actions(self) -> None:
        """A bar at the foot of the tab: how it stands, and the buttons."""
        with gr.Row(elem_id="train-actions", elem_classes="action-bar"):
            self.status = html("train-status", js_on_load="element.setAttribute('role', 'status');")
            self.start = gr.Button("Start", variant="primary", elem_id="train-start", interactive=False, min_width=90)
            self.enqueue = gr.Button("Add to queue", elem_id="train-enqueue", interactive=False, min_width=120)
            self.stop = gr.Button("Stop", variant="stop", elem_id="train-stop", visible=False, min_width=90)

    @property
    def outputs(self) -> list[Any]:
        """What `show` answers for."""
        return [self.problems, self.summary, self.differences, self.command, self.status, self.start, self.enqueue,
                self.stop, self.said]  # fmt: skip

    def show(self, now: Report, said: Report | None) -> dict[Any, Any]:
        """The components whose content has changed. said: the report that the page shows, None for none."""
        pairs: list[tuple[Any, str, Any]] = [
            (self.problems, "problems", now.problems),
            (self.summary, "summary", now.summary),
            (self.differences, "differences", now.differences),
            (self.command, "command", now.command),
            (self.status, "status", now.status),
            (self.start, "can_start", gr.update(interactive=now.can_start)),
            (self.enqueue, "can_enqueue", gr.update(interactive=now.can_enqueue)),
            (self.stop, "training", gr.update(visible=bool(now.training), value=f"Stop {now.training}")),
        ]
        changed = {
            component: value
            for component, name, value in pairs
            if said is None or getattr(said, name) != getattr(now, name)
        }
        return {**changed, self.said: now}
