"""The train tab: from a preset and a dataset to a run, with every problem listed before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import SdloraError, TrainConfig
from sdlora.config import presets
from sdlora.data.sets.folders import list_sources
from sdlora.errors import ConfigError
from sdlora.imports.read import settings_as_yaml
from sdlora.launch.runs import RunHandle
from webui.context import LAST_COUNTS, PRIVATE, QUICK, Context, handler
from webui.form import Form
from webui.gradio_quirks import collect
from webui.layout import html, problems_html
from webui.scripts import PRESSES
from webui.train import view
from webui.train.report import Report, Reporter, from_yaml, to_yaml, with_preset

FIRST_PRESET = "demo.yaml"
SET_BY_THE_PAGE = ("outputs.folder",)
"""Settings without an input: runs lie in the workspace."""
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


def build(context: Context) -> None:
    """Lay out the tab."""
    TrainTab(context)


class TrainTab:
    """The tab's components and handlers. Others fill the form with `fill(config, preset)` and `outputs`."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.services = context.services
        self.form = Form(
            TrainConfig,
            "train",
            leave_out=SET_BY_THE_PAGE,
            suggestions={
                **presets.SUGGESTIONS,
                "images.folder": list_sources(context.workspace.datasets),
                "base_model.model": presets.base_models(),
            },
        )
        self.reporter = Reporter(self.services, context.workspace.runs, self.form.fields, self.form.place_of)
        self._lay_out()
        self._wire()
        context.share("train.tab", self)
        context.share("train.dataset", self.form.components["images.folder"])

    @property
    def outputs(self) -> list[Any]:
        """What `fill` returns values for."""
        return [self.preset, self.about, *self.form.outputs, *self._views]

    def fill(self, config: TrainConfig, preset: str) -> dict[Any, Any]:
        """Show a configuration in the form, compared with a preset."""
        return self._show(self.form.show(config), preset)

    # Layout

    def _lay_out(self) -> None:
        self.selected_run = self.context.share("runs.selected", gr.State(None))
        self.draft = gr.State({})
        self.said = gr.State(None)
        with gr.Column(elem_classes="off-page"):
            self.collected = gr.Textbox(label="The form as JSON")
        with gr.Row(elem_classes="page-columns"):
            with gr.Column(scale=3, min_width=320):
                self._lay_out_first_fields()
                self._lay_out_advanced()
                self._lay_out_yaml()
                self._lay_out_saving()
            with gr.Column(scale=2, min_width=320):
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
        with gr.Row(elem_id="train-actions", elem_classes="action-bar"):
            self.status = html("train-status", js_on_load="element.setAttribute('role', 'status');")
            self.start = gr.Button("Start", variant="primary", elem_id="train-start", interactive=False, min_width=90)
            self.enqueue = gr.Button("Add to queue", elem_id="train-enqueue", interactive=False, min_width=120)
            self.stop = gr.Button("Stop", variant="stop", elem_id="train-stop", visible=False, min_width=90)

    def _lay_out_first_fields(self) -> None:
        with gr.Row(equal_height=False):
            self.preset = gr.Dropdown(
                presets.choices(self.context.workspace.presets),
                value=FIRST_PRESET,
                label="Preset",
                info="Settings to begin from, by base model, goal and memory.",
                elem_id="train-preset",
                interactive=True,
                scale=4,
            )
            self.reset = gr.Button("Reset to preset", elem_id="train-reset", scale=1, min_width=140, size="sm")
        self.about = html("train-about")
        place = self.form.place
        with gr.Row():
            place("images.folder", label="Dataset", info="One of yours, a sample set, or a folder's path typed in.")
            place("base_model.model", label="Base model", info="`builtin:emoji`, a folder, a file, or a hub name.")
        with gr.Row():
            place("name")
            place("captions.trigger", label="Trigger", info="Word that calls the adapter up. Empty: not set.")
        with gr.Row():
            place("optimization.steps", info="Optimizer updates. Empty: by epochs (10, if those are empty too).")
            place("images.resolution", label="Resolution (px)", info="Target edge; a list trains at several.")
        place(
            "previews.prompts",
            label="Preview prompts",
            info="Generated before training and every so often; one a line.",
        )

    def _lay_out_advanced(self) -> None:
        gr.Markdown("### Advanced")
        self.search = gr.Textbox(
            label="Find a setting",
            info="By name or by what it does, for example: learning rate, mask, memory.",
            elem_id="train-search",
        )
        self.found = html("train-found")
        with gr.Column(elem_id="train-advanced"):
            placed = set(self.form.components)
            self.form.accordions(SECTIONS, columns=2)
            self.advanced = [field for field in self.form.fields if field.name not in placed]

    def _lay_out_yaml(self) -> None:
        with gr.Accordion("YAML", open=False, elem_id="train-yaml-box") as self.yaml_box:
            self.yaml = gr.Textbox(
                label="Settings as YAML",
                info="What differs from the defaults. Edit it and apply it to the form.",
                lines=12,
                max_lines=30,
                elem_id="train-yaml",
                elem_classes="code",
                interactive=True,
            )
            with gr.Row():
                self.apply_yaml = gr.Button("Apply to form", elem_id="train-yaml-apply")
                self.refresh_yaml = gr.Button("Show the form's settings", elem_id="train-yaml-refresh")
                self.import_file = gr.UploadButton(
                    "Import a file", file_types=[".yaml", ".yml", ".json", ".toml"], elem_id="train-import"
                )
            gr.Markdown("Imports YAML of sdlora and settings of kohya_ss, sd-scripts, OneTrainer and ai-toolkit.")

    def _lay_out_saving(self) -> None:
        with gr.Accordion("Save as a preset", open=False):
            with gr.Row():
                self.preset_name = gr.Textbox(
                    label="Preset's name", info="Letters, digits, spaces.", elem_id="train-save-name"
                )
                self.preset_purpose = gr.Textbox(
                    label="Purpose", info="One line, shown in the list of presets.", elem_id="train-save-purpose"
                )
            self.save_preset = gr.Button("Save", elem_id="train-save")

    @property
    def _views(self) -> list[Any]:
        """What is written anew whenever the form changes."""
        return [self.problems, self.summary, self.differences, self.command, self.status, self.start, self.enqueue,
                self.stop, self.draft, self.said]  # fmt: skip

    # Events

    def _wire(self) -> None:
        form = self.form
        self._with_form(form.triggers, self._changed, self._views)
        self._with_form(form.components["images.folder"].change, self._changed, self._views)
        self._with_form(self.preset.input, self._preset_chosen, self.outputs)
        begun = [self.selected_run, self.context.tabs, *self._views]
        self._with_form(self.start.click, self._start, begun, trigger_mode="once")
        self._with_form(self.enqueue.click, self._enqueue, begun, trigger_mode="once")
        self.stop.click(handler(self._stop), self.said, self.status, **QUICK)
        self.reset.click(handler(self._reset), self.preset, self.outputs, **QUICK)
        self.differences.select(handler(self._reset_one), [self.draft, self.preset], self.outputs, **QUICK)
        self.search.input(
            handler(self._search), self.search, [self.found, *form.sections.values()],
            **LAST_COUNTS
        )  # fmt: skip
        for asked in (self.yaml_box.expand, self.refresh_yaml.click):
            asked(handler(self._show_yaml), self.draft, [self.yaml, self.problems], **QUICK)
        self.apply_yaml.click(handler(self._apply_yaml), [self.yaml, self.preset], self.outputs, **QUICK)
        self.import_file.upload(
            handler(self._import), [self.import_file, self.preset], [self.yaml, *self.outputs], **PRIVATE
        )
        self.save_preset.click(
            handler(self._save_preset),
            [self.draft, self.preset_name, self.preset_purpose],
            [self.preset, self.preset_name, self.preset_purpose],
            **PRIVATE,
        )
        self.context.on_load.append((self._restore, [], [*self.outputs, *self._choices]))
        self.context.shared["tab.train"].select(handler(self._offer), None, self._choices, **QUICK)
        self.context.timer.tick(
            handler(self._tick), [self.draft, self.said], self._views,
            concurrency_limit=None, **QUICK
        )  # fmt: skip

    def _with_form(self, triggers: Any, act: Callable[..., Any], outputs: list[Any], **options: Any) -> None:
        """Have a handler called with what the form shows at that moment, by name, and the preset's name."""

        def acted(collected: str) -> Any:
            values = json.loads(collected)
            return act(values, values.pop("preset"))

        acted.__name__ = act.__name__  # for the log
        wanted = {**LAST_COUNTS, **options}
        collected = collect(triggers, {**self.form.components, "preset": self.preset}, self.collected)
        collected.then(handler(acted), self.collected, outputs, **wanted)

    @property
    def _choices(self) -> list[Any]:
        return [self.form.components["base_model.model"], self.form.components["images.folder"]]

    def _offer(self) -> dict[Any, Any]:
        """Datasets and base models as they are now, without changing what is chosen."""
        used = [model for run in self.services.watch.snapshot().runs if (model := _base_model(run.handle))]
        return {
            self.form.components["images.folder"]: gr.update(
                choices=list_sources(self.context.workspace.datasets)  # type: ignore[arg-type]
            ),
            self.form.components["base_model.model"]: gr.update(choices=presets.base_models(used)),
        }

    def _restore(self) -> dict[Any, Any]:
        """The form as it was left."""
        preset = self.context.state.get("train.preset", FIRST_PRESET)
        known = {name for _, name in presets.choices(self.context.workspace.presets)}
        preset = preset if preset in known else FIRST_PRESET
        kept = {
            name: value
            for name, value in self.context.state.get("train.form", {}).items()
            if name in self.form.components
        }
        updates = self._show({**self._preset_shown(preset), **kept}, preset)
        for component, offered in self._offer().items():
            updates[component] = gr.update(choices=offered["choices"], value=updates[component])
        updates[self.preset] = gr.update(choices=presets.choices(self.context.workspace.presets), value=preset)
        return updates

    def _changed(self, shown: dict[str, Any], preset: str) -> dict[Any, Any]:
        if shown["images.folder"] is None and shown["base_model.model"] is None:
            return {self.said: gr.skip()}  # fields that are being put on the page
        return self._report(shown, preset)

    def _preset_chosen(self, shown: dict[str, Any], preset: str) -> dict[Any, Any]:
        before = self._preset_shown(self.context.state.get("train.preset", FIRST_PRESET))
        return self._show(with_preset(self._preset_shown(preset), before, shown), preset)

    def _reset(self, preset: str) -> dict[Any, Any]:
        return self._show(self._preset_shown(preset), preset)

    def _reset_one(self, event: gr.EventData, shown: dict[str, Any], preset: str) -> dict[Any, Any]:
        name = event.pressed["reset"]
        return self._show({**shown, name: self._preset_shown(preset)[name]}, preset)

    def _search(self, query: str) -> dict[Any, Any]:
        found = view.matches(query, self.advanced)
        sections = {field.section for field in found}
        updates: dict[Any, Any] = {self.found: view.only_these(found, self.advanced, query, self.form.element_id)}
        if query.strip():
            updates |= {box: gr.update(open=name in sections) for name, box in self.form.sections.items()}
        return updates

    def _show_yaml(self, shown: dict[str, Any]) -> dict[Any, Any]:
        found = self.reporter.draft(shown)
        if found.config is None:
            return self._panel(found.problems)
        return {self.yaml: to_yaml(found.config)}

    def _apply_yaml(self, text: str, preset: str) -> dict[Any, Any]:
        try:
            config = from_yaml(text)
        except ConfigError as error:
            return self._panel(error.problems)
        return self.fill(config, preset)

    def _import(self, uploaded: str, preset: str) -> dict[Any, Any]:
        try:
            text = settings_as_yaml(Path(uploaded))
            return {**self.fill(from_yaml(text), preset), self.yaml: text}
        except ConfigError as error:
            return self._panel(error.problems)

    def _save_preset(self, shown: dict[str, Any], name: str, purpose: str) -> dict[Any, Any]:
        found = self.reporter.draft(shown)
        if found.config is None:
            raise ConfigError("the form", found.problems)
        saved = presets.save(presets.portable(found.config), name, self.context.workspace.presets, purpose)
        self.context.state.set("train.preset", saved.name)
        gr.Info(f"Saved as {saved.path.stem}.")
        return {
            self.preset: gr.update(choices=presets.choices(self.context.workspace.presets), value=saved.name),
            self.preset_name: "",
            self.preset_purpose: "",
        }

    def _start(self, shown: dict[str, Any], preset: str) -> dict[Any, Any]:
        return self._begin(shown, preset, self.services.watch.start)

    def _enqueue(self, shown: dict[str, Any], preset: str) -> dict[Any, Any]:
        return self._begin(shown, preset, self.services.watch.enqueue)

    def _begin(self, shown: dict[str, Any], preset: str, begin: Callable[[TrainConfig], RunHandle]) -> dict[Any, Any]:
        found = self.reporter.draft(shown)
        if found.config is None or found.problems:
            return self._report(shown, preset)
        try:
            handle = begin(found.config)
        except SdloraError as error:
            return self._panel([str(error)])
        self.context.state.set("runs.selected", handle.name)
        begun = {self.selected_run: handle.name, self.context.tabs: self.context.go_to("runs")}
        return {**begun, **self._report(shown, preset)}

    def _stop(self, said: Report | None) -> dict[Any, Any]:
        run = self.services.watch.snapshot(now=True).find(said.training if said else None)
        if run is not None and run.state.is_active:
            run.handle.stop()
        return {self.status: view.stopping()}

    def _tick(self, shown: dict[str, Any], said: Report | None) -> Any:
        """Follow the dry run and the runs; says only what is new."""
        if not shown:
            return gr.skip()
        now = self.reporter.report(shown, self.context.state.get("train.preset", FIRST_PRESET))
        return gr.skip() if now == said else self._updates(now, said)

    def _show(self, shown: dict[str, Any], preset: str) -> dict[Any, Any]:
        """Fill the form and say what follows from it."""
        about = view.about_preset(preset)
        return {self.preset: preset, self.about: about, **self.form.updates(shown), **self._report(shown, preset)}

    def _report(self, shown: dict[str, Any], preset: str) -> dict[Any, Any]:
        """Everything beside the form, for what the form shows; remembers that."""
        self.context.state.update({"train.form": shown, "train.preset": preset})
        return {self.draft: shown, **self._updates(self.reporter.report(shown, preset), None)}

    def _updates(self, now: Report, said: Report | None) -> dict[Any, Any]:
        """The components whose content has changed."""
        pairs: list[tuple[Any, Any, Any]] = [
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

    def _panel(self, texts: Sequence[str]) -> dict[Any, Any]:
        return {self.problems: self.reporter.panel(texts)}

    def _preset_shown(self, preset: str) -> dict[str, Any]:
        return self.form.show(presets.load(preset))


def _base_model(handle: RunHandle) -> str | None:
    try:
        return handle.config().base_model.model
    except ConfigError:
        return None
