"""Work on a dataset that goes on in the background: captions and masks by a model, the check and its fixes; and the
buckets."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.config.captioning import CaptioningConfig
from sdlora.data.sets import folders, shapes
from sdlora.data.sets.masks import SUGGESTED
from sdlora.errors import ConfigError, DataError
from sdlora.launch.dataset_jobs import (
    WORDS,
    DatasetJobs,
    Kind,
    caption_options,
    check_options,
    checked_resolutions,
    mask_options,
)
from sdlora.launch.jobs import JobHandle, progress
from webui.context import LAST_COUNTS, PRIVATE, QUICK, Context, handler
from webui.datasets import view
from webui.datasets.browser import Browser
from webui.datasets.typed import NUMBERED, Typed
from webui.form import Form
from webui.layout import live_html, problems_html, small_button
from webui.problems import panel, shown_in
from webui.scripts import PRESSES
from webui.train.remembered import resolutions as trained_resolutions

CAPTIONERS = (
    "Salesforce/blip-image-captioning-base",
    "Salesforce/blip-image-captioning-large",
    "microsoft/git-base-coco",
    "Salesforce/blip2-opt-2.7b",
    "SmilingWolf/wd-vit-tagger-v3",
    "SmilingWolf/wd-eva02-large-tagger-v3",
)
_IN_VIEW = ("model", "existing", "trigger")
WRITING: set[Kind] = {"caption", "mask", "fix"}
"""Jobs that change the dataset."""
_FOLLOW_SECONDS = 3.0
"""While a model writes captions or masks, the images and the editor follow this often."""


@dataclass(frozen=True)
class Standing:
    """How far a job was when a page was told."""

    name: str
    is_active: bool
    stage: str | None
    done: int


@dataclass(frozen=True)
class Seen:
    """What a page shows of the jobs, so that only news is sent to it."""

    jobs: dict[Kind, Standing] = field(default_factory=dict)
    followed_at: float = 0.0
    """When the captions on it were read last, in seconds since the epoch."""


class WorkPanels:
    """Made inside the tab's layout; everything it shows is found out from the jobs on disk."""

    def __init__(self, context: Context, chosen: gr.Dropdown, browser: Browser, jobs: DatasetJobs) -> None:
        self.context = context
        self.chosen = chosen
        self.browser = browser
        self.jobs = jobs
        self.seen = gr.State(Seen())
        with gr.Accordion("Caption with a model", open=False, elem_id="dataset-caption-box"):
            self._lay_out_captioning()
        with gr.Accordion("Masks by a model", open=False, elem_id="dataset-masking-box"):
            self._lay_out_masking()
        with gr.Accordion("Health check", open=False, elem_id="dataset-check-box"):
            self._lay_out_check()
        # Every image's head is read for the chart, which takes a second for thousands: only while it is in view.
        self.is_charted = gr.State(False)
        with gr.Accordion("Shapes: buckets", open=False, elem_id="dataset-buckets-box") as self.buckets_box:
            gr.Markdown(
                "How many images share each size at the resolution chosen beside the caption.", elem_classes="quiet"
            )
            self.buckets = gr.HTML("", elem_id="dataset-buckets")
        self._wire()

    def _lay_out_captioning(self) -> None:
        self.form = Form(CaptioningConfig, "dataset-caption", suggestions={"model": CAPTIONERS})
        with gr.Row():
            for name in _IN_VIEW:
                self.form.place(name)
        self.form.accordions({"": "More"})
        self.problems = problems_html("dataset-caption-problems")
        with gr.Row(elem_classes="bar"):
            self.start = small_button("Start captioning", "dataset-caption-start", 140)
            self.stop = small_button("Cancel", "dataset-caption-cancel", 90, interactive=False)
        self.caption_progress = live_html("dataset-caption-progress")
        for name, component in self.form.components.items():
            self.context.remember(f"dataset.caption.{name}", component)

    def _lay_out_masking(self) -> None:
        with gr.Row():
            self.mask_model = gr.Dropdown(
                SUGGESTED, value=SUGGESTED[0], label="Model", allow_custom_value=True, elem_id="dataset-masking-model",
                info="alpha takes the images' own transparency; u2net and the like are those that rembg downloads. An "
                ".onnx file or a hub name will do, too.",
            )  # fmt: skip
            self.mask_anew = gr.Checkbox(
                False, label="Replace masks that are there", elem_id="dataset-masking-overwrite",
                info="Trained with images.mask=file. Undo takes all of them back.",
            )  # fmt: skip
        self.mask_problems = problems_html("dataset-masking-problems", elem_classes="bare")
        with gr.Row(elem_classes="bar"):
            self.mask = small_button("Make masks", "dataset-masking-start", 140)
            self.cancel_mask = small_button("Cancel", "dataset-masking-cancel", 90, interactive=False)
        self.mask_progress = live_html("dataset-masking-progress")
        for name, component in (("model", self.mask_model), ("overwrite", self.mask_anew)):
            self.context.remember(f"dataset.masking.{name}", component)

    def _lay_out_check(self) -> None:
        with gr.Row(elem_classes="bar"):
            self.trigger = gr.Textbox(
                label="Trigger word", info="Optional: checks that captions have it.", max_lines=1, min_width=200,
                elem_id="dataset-check-trigger", scale=2,
            )  # fmt: skip
            self.check = small_button("Check now", "dataset-check", 110)
            self.cancel_check = small_button("Cancel", "dataset-check-cancel", 90, interactive=False)
        self.check_problems = problems_html("dataset-check-problems", elem_classes="bare")
        self.check_progress = live_html("dataset-check-progress")
        self.report = gr.HTML("", elem_id="dataset-report", js_on_load=PRESSES)
        self.context.remember("dataset.trigger", self.trigger)

    @property
    def views(self) -> list[Any]:
        """What changes with the dataset."""
        return [*self._job_views, self.buckets]

    @property
    def _problems(self) -> list[Any]:
        return [self.problems, self.mask_problems, self.check_problems]

    @property
    def _job_views(self) -> list[Any]:
        return [
            self.seen,
            *self._problems,
            self.start,
            self.stop,
            self.caption_progress,
            self.mask,
            self.cancel_mask,
            self.mask_progress,
            self.check,
            self.cancel_check,
            self.check_progress,
            self.report,
        ]

    def _wire(self) -> None:
        editor = self.browser.editor
        looked_at = [*self._job_views, *self.browser.views]
        as_trained = [self.chosen, editor.resolution, self.trigger]
        # What Train is set to may have changed meanwhile.
        self.context.shared["tab.dataset"].select(handler(self._reported), self.chosen, self.report, **QUICK)
        self.start.click(
            shown_in(self.problems, self._start_captioning), {self.chosen, *self.form.inputs}, self._job_views, **QUICK
        )
        self.stop.click(shown_in(self.problems, self._cancel("caption")), self.chosen, self._job_views, **PRIVATE)
        masked = [self.chosen, self.mask_model, self.mask_anew]
        self.mask.click(shown_in(self.mask_problems, self._start_masking), masked, self._job_views, **QUICK)
        cancel_mask = shown_in(self.mask_problems, self._cancel("mask"))
        self.cancel_mask.click(cancel_mask, self.chosen, self._job_views, **PRIVATE)
        editor.mask.follow(self.mask_progress.change)
        self.check.click(shown_in(self.check_problems, self._start_check), as_trained, self._job_views, **QUICK)
        cancel = shown_in(self.check_problems, self._cancel("check", "fix"))
        self.cancel_check.click(cancel, self.chosen, self._job_views, **PRIVATE)
        acted = shown_in(self.check_problems, self._act)
        self.report.select(acted, [*editor.written, *as_trained], looked_at, js=NUMBERED, **QUICK)
        inputs = [*as_trained, self.seen, self.is_charted]
        self.context.follow(
            "dataset", self.jobs.stamp, self._poll, [*inputs, *self.browser.around], [*looked_at, self.buckets]
        )
        for event, is_open in ((self.buckets_box.expand, True), (self.buckets_box.collapse, False)):
            self.chart_on(event(lambda is_open=is_open: is_open, None, self.is_charted, **PRIVATE).then)
        for event in (editor.resolution.input, *(changed.then for changed in self.browser.changes_images)):
            self.chart_on(event)

    def chart_on(self, event: Any) -> None:
        """Have the buckets follow an event."""
        seen = [self.chosen, self.browser.editor.resolution, self.is_charted]
        event(handler(self._buckets), seen, self.buckets, **LAST_COUNTS)

    def opened(self, folder: Path | None) -> dict[Any, Any]:
        """The jobs of a dataset as they stand; its buckets come after that."""
        return {
            self.buckets: "",
            **({**self._shown(folder), **dict.fromkeys(self._problems, "")} if folder else {}),
        }

    # Handlers

    def _folder(self, name: str | None) -> Path:
        return folders.folder_of(self.context.workspace.datasets, name)

    def _start_captioning(self, values: dict[Any, Any]) -> dict[Any, Any]:
        folder = self._folder(values[self.chosen])
        config, problems = self.form.check(self.form.shown(values))
        if problems:
            return {self.problems: panel(problems, self._place_of)}
        self.jobs.start("caption", folder, caption_options(config))
        return self._shown(folder)

    def _start_masking(self, name: str, model: str, overwrite: bool) -> dict[Any, Any]:
        folder = self._folder(name)
        if not (model or "").strip():
            raise ConfigError("masks", ["model: choose one; alpha takes the images' own transparency"])
        self.jobs.start("mask", folder, mask_options(model.strip(), overwrite=overwrite))
        return self._shown(folder)

    def _place_of(self, problem: str) -> tuple[str, str] | None:
        """Element ids of the field that a problem is about, and of its section."""
        name = problem.partition(":")[0]
        return self.form.place_of(name) if name in self.form.by_name else None

    def _start_check(self, name: str, resolution: int, trigger: str) -> dict[Any, Any]:
        folder = self._folder(name)
        self._begin_check(folder, resolution, trigger)
        return self._shown(folder)

    def _begin_check(self, folder: Path, resolution: int, trigger: str) -> None:
        self.jobs.start("check", folder, ["--json", *check_options(self._trained_at(resolution), trigger or "")])

    def _trained_at(self, resolution: int) -> tuple[int, ...]:
        """For which resolutions a dataset is judged: Train's, or the editor's where Train has none that works."""
        return trained_resolutions(self.context.state) or (int(resolution),)

    def _cancel(self, *kinds: Kind) -> Any:
        def cancel(name: str) -> dict[Any, Any]:
            folder = self._folder(name)
            for kind in kinds:
                handle = self.jobs.newest(kind, folder)
                if handle is not None and handle.state().is_active:
                    handle.cancel()
            return self._shown(folder)

        return cancel

    def _act(self, event: gr.EventData, *given: Any) -> dict[Any, Any]:
        """A button of the report: fix a rule, or show an image."""
        *written, name, resolution, trigger = given
        folder, data = self._folder(name), event.pressed
        if data["of"] != name:  # chosen since, and not shown yet
            raise DataError(f"That is of {data['of']}, and {name} is chosen now.")
        if "image" in data:
            theirs = self.browser.editor.keep(Typed.of(*written))
            editor = self.browser.editor
            return self.browser.shown_image(folder, data["image"]) if theirs is None else editor.asking(theirs)
        options = ["--rules", data["fix"], "--apply", *check_options(self._trained_at(resolution), trigger or "")]
        self.jobs.start("fix", folder, options)
        return self._shown(folder)

    def _poll(
        self,
        name: str | None,
        resolution: int,
        trigger: str,
        seen: Seen,
        is_charted: bool,
        *around: Any,
    ) -> Any:
        """Follow the jobs; says only what is new, and shows the captions that have come meanwhile."""
        if not name or not (folder := self.context.workspace.datasets / name).is_dir():
            return gr.skip()
        now = self._standing(folder)
        if now == seen.jobs:
            return gr.skip()
        ended = {kind for kind, job in seen.jobs.items() if job.is_active and not now[kind].is_active}
        if "fix" in ended:
            self._check_again(folder, resolution, trigger)
        charted = {self.buckets: self._buckets(name, resolution, is_charted)} if "fix" in ended else {}
        writes = ended & WRITING or any(kind in now and now[kind].is_active for kind in ("caption", "mask"))
        updates = self._shown(folder) | charted
        # Reading a folder's captions anew takes longer than a look at the jobs, so that is done less often.
        if not writes or not (ended or time.time() - seen.followed_at > _FOLLOW_SECONDS):
            return updates | {self.seen: Seen(now, seen.followed_at)}
        return {**updates, **self.browser.refreshed(folder, *around), self.seen: Seen(now, time.time())}

    def _check_again(self, folder: Path, resolution: int, trigger: str) -> None:
        """Once a fix is done the report is out of date. Whichever page sees it first begins a new one."""
        with suppress(ConfigError):  # another page was first
            self._begin_check(folder, resolution, trigger)

    def _buckets(self, name: str | None, resolution: int, is_charted: bool) -> str:
        """The chart; nothing while it is out of view."""
        if not is_charted or not name:
            return ""
        return view.buckets(shapes.count_buckets(self._folder(name), int(resolution)))

    # Pieces of updates

    def _standing(self, folder: Path) -> dict[Kind, Standing]:
        """The newest job of each kind."""
        standing: dict[Kind, Standing] = {}
        for kind in WORDS:
            handle = self.jobs.newest(kind, folder)
            if handle is not None:
                state = handle.state()
                standing[kind] = Standing(handle.name, state.is_active, state.stage, state.done)
        return standing

    def _shown(self, folder: Path) -> dict[Any, Any]:
        caption, mask, check, fix = (self.jobs.newest(kind, folder) for kind in ("caption", "mask", "check", "fix"))
        fixing = fix if fix is not None and fix.state().is_active else None
        busy = bool(self.jobs.active(folder))
        checking = fixing is not None or (check is not None and check.state().is_active)
        return {
            self.seen: Seen(self._standing(folder)),
            self.start: gr.Button(interactive=not busy),
            self.stop: gr.Button(interactive=caption is not None and caption.state().is_active),
            self.caption_progress: _progress("caption", caption),
            self.mask: gr.Button(interactive=not busy),
            self.cancel_mask: gr.Button(interactive=mask is not None and mask.state().is_active),
            self.mask_progress: _masked(mask, folder),
            self.check: gr.Button(interactive=not busy),
            self.cancel_check: gr.Button(interactive=checking),
            self.check_progress: _progress("fix", fixing) if fixing else _progress("check", check),
            self.report: self._report(check, folder),
        }

    def _reported(self, name: str | None) -> Any:
        if not name or not (folder := self.context.workspace.datasets / name).is_dir():
            return gr.skip()
        return self._report(self.jobs.newest("check", folder), folder)

    def _report(self, check: JobHandle | None, folder: Path) -> str:
        """The newest check's findings; while a check runs, those are not there yet."""
        if check is None:
            return view.report(None, folder)
        state = check.state()
        if state.status != "finished":
            return ""
        at = time.strftime("%H:%M", time.localtime(state.ended_at or check.created_at))
        now = trained_resolutions(self.context.state)
        return view.report(check.result(), folder, view.judged(at, checked_resolutions(check), now))


def _masked(handle: JobHandle | None, folder: Path) -> str:
    """The masking's progress, then what came of it."""
    is_done = handle is not None and handle.state().status == "finished"
    return _progress("mask", handle) + (view.masked(handle.result(), folder) if handle and is_done else "")


def _progress(kind: Kind, handle: JobHandle | None) -> str:
    return view.job(progress(WORDS[kind], handle.state()) if handle is not None else None)
