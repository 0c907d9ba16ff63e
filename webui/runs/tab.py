"""The runs tab: what trains, what waits, what came of it; stop, resume, compare.

What a handler finds new goes to the page as one text, the news, and names the run it is about. A script there puts it
into the components, all at once, or drops it when that page has turned to another run meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.errors import RunError
from sdlora.launch.runs import RunHandle, clone
from sdlora.launch.support import copy_log, support_zip, write_csv
from webui.context import EACH_COUNTS, PRIVATE, QUEUED, QUICK, Context, handler
from webui.downloads import download_button
from webui.gradio_quirks import COMES_AND_GOES
from webui.layout import hidden_text, html, problems_html
from webui.news import each_second
from webui.problems import panel, shown_in
from webui.runs import sentences, view
from webui.runs.asking import AskedPictures
from webui.runs.chart import ChartOptions
from webui.runs.evaluating import EvaluateView
from webui.runs.going_on import GoingOn
from webui.runs.outcome import Outcome
from webui.runs.parts import Choice, RunParts
from webui.scripts import (
    BEFORE_AFTER,
    CHART,
    LIVE,
    NEWS_OF_A_RUN,
    NEXT_ASKED,
    PRESSES,
    TO_THE_END,
    goes_to,
)


def build(context: Context) -> None:
    """Lay out the tab."""
    RunsTab(context)


class RunsTab:
    """The tab's components and handlers. Every handler ends by telling whatever is new since the page's last one."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.watch = context.services.watch
        self.evaluations = context.services.evaluations
        workspace = context.workspace
        self.made = RunParts(self.watch, self.evaluations, workspace.thumbnails, workspace.datasets)
        self._numbers = count(1)
        self.selected = context.shared["runs.selected"]
        with gr.Column(elem_classes="off-page"):
            self.selected.render()
            self.sent = hidden_text("runs-sent", "What this page shows", "{}")
            self.news = hidden_text("runs-news", "What is new")
        self.preview = gr.State((0, None))
        self.pending = gr.State(None)
        gr.HTML("<h2>Runs</h2>", elem_classes="tab-title")
        with gr.Row(elem_classes="page-columns runs-columns"):
            with gr.Column():
                self.queue = html("runs-queue", js_on_load=PRESSES)
                self.list = html("runs-list", js_on_load=PRESSES + goes_to("runs", "run"))
            with gr.Row(visible=False, elem_id="runs-details", elem_classes="page-columns") as self.details:
                with gr.Column():
                    self._lay_out_run()
                with gr.Column():
                    self._lay_out_views()
        self._wire()

    # Layout

    def _lay_out_run(self) -> None:
        self.headline = html("runs-status", js_on_load=LIVE)
        self.figures = html("runs-figures")
        self.hint = html("runs-hint", js_on_load=LIVE)
        self.outcome = Outcome(self.context)
        with gr.Row(elem_id="runs-actions", elem_classes="run-actions"):
            self.buttons = {
                name: gr.Button(label, elem_id=f"runs-{name}", interactive=False, min_width=90, size="sm", **options)
                for name, label, options in (
                    ("stop", "Stop", {"variant": "stop"}),
                    ("kill", "Kill", {"variant": "stop", "visible": False}),
                    ("resume", "Resume", {"variant": "primary"}),
                    ("save", "Save now", {}),
                    ("preview", "Preview now", {}),
                    ("delete", "Delete", {}),
                )
            }
            self.clone = gr.Button("Copy to Train", elem_id="runs-clone", min_width=90, size="sm")
        self.problems = problems_html("runs-problems", elem_classes="bare")
        with gr.Row(visible=False, elem_id="runs-confirm", elem_classes="confirm") as self.confirm:
            self.question = html("runs-question", js_on_load=LIVE)
            self.yes = gr.Button("Yes", variant="stop", elem_id="runs-yes", min_width=80)
            self.no = gr.Button("No", elem_id="runs-no", min_width=80)
        self.going_on = GoingOn(self.context, self.selected)

    def _lay_out_views(self) -> None:
        with gr.Tabs(elem_id="runs-views", selected="loss") as self.views:
            with gr.Tab("Loss", id="loss", elem_id="runs-view-loss"):
                self._lay_out_chart()
            with gr.Tab("Previews", id="previews", elem_id="runs-view-previews"):
                self.pair = html("runs-pair", js_on_load=BEFORE_AFTER)
                self.grid = html("runs-grid", js_on_load=PRESSES)
                self.asked = AskedPictures()
                self.buttons |= {"draw": self.asked.draw, "draw_prompts": self.asked.prompts}
            with gr.Tab("Evaluate", id="evaluate", elem_id="runs-view-evaluate"):
                self.evaluate = EvaluateView(self.context, self.evaluations)
                self.buttons |= {"evaluate": self.evaluate.start, "cancel_evaluation": self.evaluate.cancel}
            with gr.Tab("Log", id="log", elem_id="runs-view-log") as self.log_tab:
                self._lay_out_log()
            with gr.Tab("Files", id="files", elem_id="runs-view-files"):
                self.files = html("runs-files")
            with gr.Tab("Compare", id="compare", elem_id="runs-view-compare") as self.compare_tab:
                self.compare = gr.Dropdown(
                    [],
                    multiselect=True,
                    label="Runs to compare",
                    info="Their curves are laid over each other, with the settings in which they differ.",
                    elem_id="runs-compare",
                    interactive=True,
                    **COMES_AND_GOES,
                )
                self.compared = html("runs-compared", js_on_load=CHART)
        # Below all views: that a picture can't be drawn is of as much use beside the pictures.
        self.messages = html("runs-messages")

    def _lay_out_chart(self) -> None:
        remember = self.context.remember
        self.chart = html("runs-chart", js_on_load=CHART)
        with gr.Row():
            self.smoothing = remember("runs.smoothing", gr.Slider(
                0, 1, 0.3, step=0.05, label="Smoothing", info="0 shows each step's loss as it is.", buttons=[],
                elem_id="runs-smoothing", min_width=220,
            ))  # fmt: skip
            self.log_scale = remember("runs.log_scale", gr.Checkbox(
                False, label="Logarithmic scale", info="Tells small losses apart.", elem_id="runs-log-scale",
                min_width=200,
            ))  # fmt: skip
            self.with_rate = remember("runs.with_rate", gr.Checkbox(
                True, label="Learning rate", info="On the axis at the right.", elem_id="runs-with-rate", min_width=200
            ))  # fmt: skip
        with gr.Row(elem_classes="row-end"):
            self.first = gr.Number(
                0, label="From step", info="Or drag over the chart.", precision=0, elem_id="runs-first", min_width=130
            )
            self.last = gr.Number(
                None, label="To step", info="Empty: the newest.", precision=0, elem_id="runs-last", min_width=130
            )
            download_button("Download as CSV", self._csv, self.selected, "runs-csv", scale=0, min_width=160)

    def _lay_out_log(self) -> None:
        self.log = gr.Textbox(
            label="Log",
            info="The end of log.txt; it follows the newest line while you are at the bottom.",
            lines=16,
            max_lines=16,
            interactive=False,
            buttons=["copy"],
            elem_id="runs-log",
            elem_classes="code",
        )
        with gr.Row():
            download_button("Download the log", self._log_file, self.selected, "runs-log-download")
            self.with_prompts = gr.Checkbox(
                False,
                label="Prompts too",
                info="The support zip has configuration, versions and logs; never images.",
                elem_id="runs-support-prompts",
            )
            download_button("Support zip", self._support, [self.selected, self.with_prompts], "runs-support")

    # Events

    def _wire(self) -> None:
        inputs = [self.selected, self.sent, self.preview, *self._chart_inputs, self.compare]
        told = [self.news, self.preview]

        def on(trigger: Any, act: Callable[..., Any], **options: Any) -> None:
            trigger(handler(act), inputs, told, **{**QUICK, **options})

        self.context.follow("runs", self._stamp, self._tell, inputs, told)
        for changed in (*self._chart_inputs, self.compare):
            on(changed.input, self._tell, trigger_mode="always_last")
        shown = [*self._parts.values(), *self.buttons.values(), self.details, self.sent, self.selected]
        self.news.change(None, [self.news, self.selected], shown, js=self._script, **PRIVATE)
        self.evaluate.wire(inputs, told, self._tell, self._handle)
        self.asked.wire(inputs, told, self._tell, self._handle)
        for name, act in (
            ("stop", RunHandle.stop),
            ("save", RunHandle.save_now),
            ("preview", RunHandle.preview_now),
            ("resume", self._resume_run),
        ):
            acted = shown_in(self.problems, self._acting(act))
            self.buttons[name].click(acted, inputs, [*told, self.problems], **QUEUED)  # or `gr.Info` would not be shown
        asking = [self.confirm, self.question, self.pending, self.problems]
        for name in ("kill", "delete"):
            self.buttons[name].click(shown_in(self.problems, self._asking(name)), self.selected, asking, **QUICK)
        self.no.click(shown_in(self.problems, self._closed), None, asking, **QUICK)
        confirmed = shown_in(self.problems, self._confirmed)
        self.yes.click(confirmed, [self.pending, *inputs], [*asking, *told, self.selected], **QUICK)
        self._wire_choices(inputs, told, asking)
        train = self.context.shared["train.tab"]
        self.clone.click(
            shown_in(self.problems, self._clone),
            [self.selected, train.asked],
            [*train.outputs, self.context.tabs, self.problems],
            js=NEXT_ASKED,
            **QUICK,
        )

    def _wire_choices(self, inputs: list[Any], told: list[Any], asking: list[Any]) -> None:
        """Presses inside lists and pictures, and what a page begins with."""
        looked_at = [*told, *dict.fromkeys([*asking, *self._panels]), self.first, self.last]
        self.list.select(handler(self._select), inputs, looked_at, **EACH_COUNTS)
        self.going_on.follow(self.list)
        self.queue.select(handler(self._alter_queue), inputs, told, **EACH_COUNTS)
        self.grid.select(handler(self._compare_previews), inputs, told, **EACH_COUNTS)
        for chart in (self.chart, self.compared):
            chart.select(handler(self._zoom), inputs, [*told, self.first, self.last], **EACH_COUNTS)
        self.log_tab.select(None, None, None, js=TO_THE_END, **PRIVATE)
        self.compare_tab.select(handler(self._offer_runs), self.compare, self.compare, **QUICK)
        self.context.on_load.append((None, [], [self.selected], "() => [window.sdlora.place('runs')]"))
        self.context.when_built.append(lambda: self.outcome.wire(self.views, self.problems))

    @property
    def _panels(self) -> list[Any]:
        """Where problems with the run in view stand."""
        return [self.problems, self.evaluate.problems, self.asked.problems, self.going_on.problems]

    @property
    def _chart_inputs(self) -> list[Any]:
        return [self.smoothing, self.log_scale, self.with_rate, self.first, self.last]

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "list": self.list,
            "queue": self.queue,
            "headline": self.headline,
            "figures": self.figures,
            "hint": self.hint,
            "outcome": self.outcome.shown,
            "messages": self.messages,
            "chart": self.chart,
            "grid": self.grid,
            "pair": self.pair,
            "asked": self.asked.pictures,
            "log": self.log,
            "files": self.files,
            "compared": self.compared,
            "evaluate": self.evaluate.standing,
            "evaluation": self.evaluate.result,
        }

    def _stamp(self) -> object:
        """Changes with the runs and what they tell."""
        seen = self.watch.snapshot()
        active = tuple((run.name, run.state.step, run.state.stage_done, run.handle.log_stamp()) for run in seen.active)
        standing = tuple((run.name, run.state.status) for run in seen.runs)
        evaluated = self.evaluations.stamp()
        changing = each_second(bool(seen.active) or self.watch.is_reading)
        return standing, seen.waiting, seen.is_held, active, evaluated, changing

    def _tell(
        self, selected: str | None, sent: str, preview: Any, *chosen: Any, is_pressed: bool = False
    ) -> dict[Any, Any]:
        """Whatever this page doesn't show yet; nothing at all when nothing is new.

        The page itself says what it shows, as `sent`: an answer that came late or got lost is made good by the next.
        is_pressed: the run was pressed, so the page waits for an answer, be it the run that it shows already.
        """
        *charted, compared = chosen
        parts = self.made.parts(Choice(selected, tuple(preview), _chart_options(*charted), tuple(compared or ())))
        before: dict[str, int] = json.loads(sent or "{}")
        # Hashes of texts hold within one process: after a restart all differ, and the page is sent everything once.
        now = {name: hash(part.key) for name, part in parts.items()}
        run = self.made.chosen(self.watch.snapshot(), selected)
        new = {
            name: self.made.once((name, part.key), part.make)
            for name, part in parts.items()
            if before.get(name) != now[name]
        }
        if not new and run is not None and run.name == selected and not is_pressed:
            return {self.news: gr.skip()}
        buttons = self._press_states(new.pop("buttons")) if "buttons" in new else {}
        news = {
            "asked": selected or "",
            "run": run.name if run else "",
            "gone": sentences.gone(selected) if selected and (run is None or run.name != selected) else "",
            "parts": new,
            "buttons": buttons,
            "sent": json.dumps(now),
            # Makes every text another one: the same news twice would be no change, and the page's script would not run.
            "number": next(self._numbers),
        }
        return {self.news: json.dumps(news)}

    @property
    def _script(self) -> str:
        """Puts news into the components that `_wire` names, in their order."""
        return NEWS_OF_A_RUN % (json.dumps(list(self._parts)), json.dumps(list(self.buttons)))

    def _press_states(self, actions: Any) -> dict[str, dict[str, bool]]:
        # What a run that is over, or hasn't begun, has no use for is not in the way either.
        return {
            name: {"interactive": name in actions, **({} if name == "delete" else {"visible": name in actions})}
            for name in self.buttons
        }

    def _acting(self, act: Callable[[RunHandle], Any]) -> Callable[..., Any]:
        """A handler that does something with the run that is shown, then tells what came of it."""

        def acted(selected: str | None, *inputs: Any) -> Any:
            act(self._handle(selected))
            # Looked at anew, or the answer would show what was so before the act.
            self.watch.snapshot(now=True)
            return self._tell(selected, *inputs)

        return acted

    def _asking(self, action: str) -> Callable[..., Any]:
        """A handler that asks first."""

        def ask(selected: str | None) -> dict[Any, Any]:
            name = self._handle(selected).name
            questions = {
                "kill": f"Kill {name}? It ends at once; steps since its last checkpoint are lost.",
                "delete": f"Move the run {name} with its adapter files and previews to the trash?",
            }
            question = view.question(questions[action])
            return {self.confirm: gr.update(visible=True), self.question: question, self.pending: (action, name)}

        return ask

    def _closed(self) -> dict[Any, Any]:
        """Without the question, whatever it was about."""
        return {self.confirm: gr.update(visible=False), self.question: "", self.pending: None}

    def _confirmed(self, pending: tuple[str, str] | None, selected: str | None, *inputs: Any) -> Any:
        closed = self._closed()
        if pending is None:
            return closed
        action, name = pending
        run = self.watch.snapshot(now=True).find(name)
        if run is None:
            return {**closed, self.problems: panel([sentences.gone(name)])}
        handle = run.handle
        if action == "kill":
            handle.kill()
        else:
            handle.delete(self.context.workspace.trash)
            closed[self.selected] = selected = ""
        self.watch.snapshot(now=True)
        return {**closed, **self._tell(selected, *inputs)}

    def _resume_run(self, handle: RunHandle) -> None:
        """Go on with it now, or when what trains on the same accelerator is done."""
        if (busy := self.watch.resume(handle)) is not None:
            gr.Info(f"{busy} is training: {handle.name} goes on after it.")

    def _select(self, event: gr.EventData, selected: str | None, sent: str, preview: Any, *chosen: Any) -> Any:
        """Look at another run; a question about the last one is over, and so is what was looked at of it."""
        name, newest = str(event.pressed["run"]), (0, None)
        *charted, first, last, compared = chosen
        first, last = (first, last) if name == selected else (0, None)
        said_of_the_last_one = dict.fromkeys(self._panels, "")
        told = self._tell(name, sent, newest, *charted, first, last, compared, is_pressed=True)
        shown = {self.preview: newest, self.first: first, self.last: last}
        return {**told, **self._closed(), **said_of_the_last_one, **shown}

    def _compare_previews(
        self, event: gr.EventData, selected: str | None, sent: str, preview: Any, *chosen: Any
    ) -> Any:
        """Put the pressed picture under the slider."""
        data = event.pressed
        wanted = (int(data["prompt"]), int(data["step"]))
        return {**self._tell(selected, sent, wanted, *chosen), self.preview: wanted}

    def _zoom(self, event: gr.EventData, selected: str | None, sent: str, preview: Any, *chosen: Any) -> Any:
        """Look at the stretch of steps that was dragged over, or at all of them."""
        stretch = event.pressed
        *others, _, _, compared = chosen
        told = self._tell(selected, sent, preview, *others, stretch["first"], stretch["last"], compared)
        return {**told, self.first: stretch["first"], self.last: stretch["last"]}

    def _alter_queue(self, event: gr.EventData, selected: str | None, *inputs: Any) -> Any:
        """Move a waiting run, take it out, hold the queue or let it go on."""
        data = event.pressed
        act, run = data["queue"], data.get("run", "")
        if act in ("hold", "release"):
            self.watch.hold(act == "hold")
        elif act == "remove":
            self.watch.take_out(run)
        else:
            self.watch.move(run, -1 if act == "up" else 1)
        self.watch.snapshot(now=True)
        return self._tell(selected, *inputs)

    def _clone(self, selected: str | None, asked: str) -> Any:
        config = clone(self._handle(selected))
        train = self.context.shared["train.tab"]
        return {**train.fill(config, asked), self.context.tabs: self.context.go_to("train")}

    def _offer_runs(self, chosen: list[str]) -> Any:
        """The runs that are there now; those chosen that are not any more are left out."""
        names = [run.name for run in self.watch.snapshot().runs]
        return gr.update(choices=names, value=[name for name in chosen or () if name in names])

    # Files

    def _csv(self, selected: str | None) -> Path:
        handle = self._handle(selected)
        return write_csv(self.watch.curves(handle, whole=True), handle.name, self.context.workspace.exports)

    def _log_file(self, selected: str | None) -> Path:
        handle = self._handle(selected)
        return copy_log(handle, self.context.workspace.exports)

    def _support(self, selected: str | None, with_prompts: bool) -> Path:
        handle, folder = self._handle(selected), self.context.workspace.exports
        return support_zip(handle, folder, with_prompts=bool(with_prompts), replace=True)

    def _handle(self, selected: str | None) -> RunHandle:
        """The run in view. Where that is gone nothing is done, least of all to the one that is shown next."""
        seen = self.watch.snapshot()
        run = seen.find(selected) if selected else self.made.chosen(seen, None)
        if run is None:
            raise RunError(sentences.gone(selected) if selected else "There is no run yet: start one on the Train tab.")
        return run.handle


def _chart_options(
    smoothing: float | None, log_scale: bool, with_rate: bool, first: float | None, last: float | None
) -> ChartOptions:
    """What the inputs below the chart stand for; a stretch that makes no sense is all of the run."""
    first_step, last_step = int(first or 0), None if last is None else int(last)
    if last_step is not None and last_step <= first_step:
        first_step, last_step = 0, None
    return ChartOptions(smoothing or 0.0, bool(log_scale), bool(with_rate), max(0, first_step), last_step)
