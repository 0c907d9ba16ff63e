"""The train tab: from a preset and a dataset to a run, with every problem listed before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import SdloraError, Suggestion, TrainConfig
from sdlora.config import presets
from sdlora.data.sets import folders
from sdlora.data.sets.folders import list_sources
from sdlora.data.sets.suggestions import suggest
from sdlora.launch.runs import RunHandle
from webui.context import LAST_COUNTS, PRIVATE, QUICK, Context, handler
from webui.form import Form
from webui.gradio_quirks import collect
from webui.layout import hidden_text, html
from webui.news import each_second
from webui.problems import listed, shown_in
from webui.scripts import ASKED, LIVE, NEXT_ASKED, PRESSES
from webui.train import view
from webui.train.advanced import AdvancedSettings
from webui.train.beside import BesideTheForm
from webui.train.report import Report, Reporter, changed_settings, with_preset
from webui.train.saving import PresetSaving
from webui.train.sheet import Sheet
from webui.train.suggesting import Suggesting
from webui.train.yaml_panel import YamlPanel

FIRST_PRESET = "demo.yaml"
SET_BY_THE_PAGE = ("outputs.folder",)
"""Settings without an input: runs lie in the workspace."""


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

    @property
    def outputs(self) -> list[Any]:
        """What `fill` returns values for."""
        standing = [self.preset, self.standing, self.about, self.aside, self.before, self.filled, self.yaml.problems]
        return [*standing, *self.form.outputs, *self._views]

    def fill(self, config: TrainConfig, asked: str) -> dict[Any, Any]:
        """Show a configuration in the form, compared with the preset it stands on.

        asked: the value of the input `asked` of an event with `js=NEXT_ASKED`, its last input.
        """
        state = self.context.state
        preset, before = state.get("train.preset", FIRST_PRESET), state.get("train.form", {})
        sheet = Sheet(before, preset, preset, asked=asked)
        return {**self._show(self.form.show(config), preset, instead_of=sheet), self.filled: asked}

    def take_dataset(self, folder: Path, asked: str) -> dict[Any, Any]:
        """Show a dataset in the form, with the name, trigger and prompts it tells, where no person wrote others."""
        state = self.context.state
        preset, shown = state.get("train.preset", FIRST_PRESET), dict(state.get("train.form", {}))
        standing = self._preset_shown(preset)
        told = suggest(folder)
        offered = {"name": told.name, "captions.trigger": told.trigger, "previews.prompts": "\n".join(told.prompts)}
        last = state.get("train.from_dataset", {})
        taken = {
            name: value
            # What the last dataset told was typed by nobody either, so the next one may replace it.
            for name, value in offered.items()
            if shown.get(name) in (None, "", standing[name], last.get(name))
        }
        state.set("train.from_dataset", taken)
        settings = {**standing, **shown, **taken, "images.folder": str(folder)}
        updates = self._show(settings, preset, instead_of=Sheet(shown, preset, preset))
        return {**updates, **self._with_choices(updates), self.filled: asked}

    # Layout

    def _lay_out(self) -> None:
        self.selected_run = self.context.share("runs.selected", hidden_text("runs-selected", "The run in view"))
        self.selected_run.unrender()  # the Runs tab puts it into the page
        self.draft = gr.State(None)
        self.before = gr.State(None)  # the sheet that Undo brings back
        with gr.Column(elem_classes="off-page"):
            # Texts out of view: the page's scripts write and read them without asking the server.
            self.collected = hidden_text("train-collected", "The form as JSON")
            self.standing = hidden_text("train-standing", "The preset that the form stands on")
            self.asked = hidden_text("train-asked", "Asked for")
            self.filled = hidden_text("train-filled", "Answered")
        gr.HTML("<h2>Train</h2>", elem_classes="tab-title")
        with gr.Row(elem_classes="page-columns form-and-more"):
            with gr.Column():
                self._lay_out_first_fields()
            with gr.Column():
                self.advanced = AdvancedSettings(self.form)
                self.yaml = YamlPanel(self.reporter, self.context.workspace.runs, self._fill_instead, self._report)
                self.saving = PresetSaving(self.context.workspace.presets)
            with gr.Column():
                self.beside = BesideTheForm()
        self.beside.lay_out_actions()

    def _lay_out_first_fields(self) -> None:
        with gr.Row(elem_classes="row-end"):
            self.preset = gr.Dropdown(
                presets.choices(self.context.workspace.presets),
                value=FIRST_PRESET,
                label="Preset",
                info="Settings to begin from, by base model, goal and memory.",
                elem_id="train-preset",
                interactive=True,
                scale=4,
            )
            self.reset = gr.Button("Reset to preset", elem_id="train-reset", scale=0, min_width=150, size="sm")
        self.about = html("train-about")
        self.aside = html("train-aside", js_on_load=LIVE + PRESSES)
        place = self.form.place
        with gr.Row():
            place("images.folder", label="Dataset", info="Yours, a sample set, or a folder's path.")
            place("base_model.model", label="Base model", info="`builtin:emoji`, a folder, a file, or a hub name.")
        self.suggesting = Suggesting(self.context.workspace.jobs, {each.name: each.label for each in self.form.fields})
        with gr.Row():
            place("name")
            place("captions.trigger", label="Trigger", info="Word that calls the adapter up. Empty: not set.")
        with gr.Row():
            narrow = {"min_width": 130}
            place("optimization.steps", info="Empty: by epochs.", **narrow)
            place("optimization.epochs", info="Over all images.", **narrow)
            place("images.resolution", label="Resolution (px)", info="Edge, or several.", **narrow)
            place("optimization.batch_size", info="Images at once.", **narrow)
        with gr.Row():
            place("adapter.rank", info="Size of the adapter.", **narrow)
            place("optimization.learning_rate", info="Of the UNet's adapter.", **narrow)
            place("adapter.text_encoder", label="Train the text encoder", info="Both of SDXL.", **narrow)
        place(
            "previews.prompts",
            label="Preview prompts",
            info="Generated before training and every so often; one a line.",
        )

    @property
    def _views(self) -> list[Any]:
        """What is written anew whenever the form changes."""
        return [*self.beside.outputs, self.yaml.text, self.yaml.base, self.draft]

    # Events

    def _wire(self) -> None:
        form = self.form
        self._with_form(form.triggers, self._changed, self._views)
        self._with_form([form.components["images.folder"].change, self.yaml.text.input], self._changed, self._views)
        begun = [self.selected_run, self.context.tabs, *self._views]
        # "once": a second press while the first is under way would begin a second run.
        self._with_form(self.beside.start.click, self._start, begun, trigger_mode="once")
        self._with_form(self.beside.enqueue.click, self._enqueue, begun, trigger_mode="once")
        self._wire_fills()
        asking = self.suggesting
        self._with_form(asking.ask.click, self._suggest, asking.outputs, asking.inputs, trigger_mode="once")
        self.beside.stop.click(handler(self._stop), self.beside.said, self.beside.status, **QUICK)
        advanced, saving = self.advanced, self.saving
        advanced.query.input(handler(advanced.search), advanced.query, advanced.outputs, **LAST_COUNTS)
        saving.button.click(
            shown_in(saving.problems, self._save_preset),
            [self.draft, saving.name, saving.purpose],
            [self.preset, self.standing, saving.name, saving.purpose, saving.problems, *self._views],
            **PRIVATE,
        )
        self.context.on_load.append((self._restore, [], [*self.outputs, *self.choices], None))
        self.context.shared["tab.train"].select(handler(self._offer), None, self.choices, **QUICK)
        self.context.follow("train", self._stamp, self._tick, [self.draft, self.beside.said], self._views)

    def _wire_fills(self) -> None:
        """What replaces the form's settings. Each is numbered in the page, so that Start knows of those under way."""
        for trigger, act in (
            (self.preset.input, self._preset_chosen),
            (self.reset.click, self._reset),
            (self.beside.differences.select, self._reset_one),
            (self.yaml.to_form.click, self.yaml.apply),
            (self.yaml.from_form.click, self.yaml.follow),
        ):
            self._with_form(trigger, self._filling(act), self.outputs, fills=True)
        self._with_form(self.aside.select, self._filling(self._answered), self.outputs, [self.before], fills=True)
        taken = [self.suggesting.found]
        outputs = [*self.outputs, *self.suggesting.outputs]
        self._with_form(self.suggesting.shown.select, self._filling(self._take_suggestion), outputs, taken, fills=True)
        self.yaml.file.upload(
            handler(self._import), [self.yaml.file, self.asked], [self.yaml.text, *self.outputs], js=NEXT_ASKED,
            **PRIVATE,
        )  # fmt: skip

    def _with_form(
        self,
        triggers: Any,
        act: Callable[..., Any],
        outputs: list[Any],
        others: Sequence[Any] = (),
        *,
        fills: bool = False,
        **options: Any,
    ) -> None:
        """Have a handler called with what the form shows at that moment, and with what other inputs hold."""

        def acted(collected: str, *values: Any) -> Any:
            return act(Sheet.read(collected), *values)

        acted.__name__ = act.__name__  # for the log
        components = {
            **self.form.components,
            "preset": self.preset,
            "standing": self.standing,
            "filled": self.filled,
            "yaml": self.yaml.text,
            "yaml_base": self.yaml.base,
        }
        asked = ASKED % ("ask" if fills else "asked")
        self.context.scripts["names.train"] = json.dumps(list(components))
        collected = collect(triggers, components, self.collected, asked, names='window.sdlora["names.train"]')
        collected.then(handler(acted), [self.collected, *others], outputs, **{**LAST_COUNTS, **options})

    def _filling(self, act: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
        """A handler that answers the number it was asked by, whatever comes of it."""

        def filled(sheet: Sheet, *values: Any) -> dict[Any, Any]:
            try:
                return {**act(sheet, *values), self.filled: sheet.asked}
            except SdloraError as error:
                shown = {self.beside.problems: self.reporter.panel(listed(error)), self.preset: sheet.standing}
                return {**shown, self.filled: sheet.asked}

        filled.__name__ = act.__name__
        return filled

    @property
    def choices(self) -> list[Any]:
        """The inputs whose lists come and go."""
        return [self.form.components["base_model.model"], self.form.components["images.folder"]]

    def _offer(self) -> dict[Any, Any]:
        """Datasets and base models as they are now, without changing what is chosen."""
        used = self.services.watch.base_models()
        # Choices alone: a value given here would overwrite one that was typed a moment ago.
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
        updates |= self._with_choices(updates)
        updates[self.preset] = gr.update(choices=presets.choices(self.context.workspace.presets), value=preset)
        return updates

    def _with_choices(self, updates: dict[Any, Any]) -> dict[Any, Any]:
        """The lists of datasets and base models as they are now, beside the values they get."""
        return {
            component: gr.update(choices=offered["choices"], value=updates[component])
            for component, offered in self._offer().items()
        }

    def _changed(self, sheet: Sheet) -> dict[Any, Any]:
        if sheet.settings["images.folder"] is None and sheet.settings["base_model.model"] is None:
            return {self.beside.said: gr.skip()}  # fields that are being put on the page
        return self._report(sheet)

    def _preset_chosen(self, sheet: Sheet) -> dict[Any, Any]:
        """Another preset: at once where nothing is lost, else after a question. The same one again is no choice."""
        if sheet.preset in (None, "", sheet.standing):
            return {self.preset: sheet.standing}
        changed = changed_settings(self.form.fields, self._preset_shown(sheet.standing), sheet.settings)
        lost = [field.label for field in changed] + (["YAML that isn't applied"] if sheet.has_other_yaml else [])
        if not lost:
            return self._use_preset(sheet, sheet.preset)
        question = view.ask_for_preset(presets.title(sheet.preset), sheet.preset, lost)
        return {self.preset: sheet.standing, self.aside: question}

    def _answered(self, sheet: Sheet, before: Sheet | None) -> dict[Any, Any]:
        """The answer to that question, or Undo of what filled the form last."""
        if sheet.pressed.get("act") == "undo" and before is not None:
            shown = self._show(before.settings, before.standing)
            if not before.has_other_yaml:
                return shown
            kept = {self.yaml.text: before.yaml, self.yaml.base: before.yaml_base}
            return {**shown, **self._report(replace(before, preset=before.standing)), **kept}
        if sheet.pressed.get("act") == "use-preset":
            return self._use_preset(sheet, sheet.pressed["preset"])
        return {self.aside: ""}

    def _use_preset(self, sheet: Sheet, preset: str) -> dict[Any, Any]:
        before = self._preset_shown(sheet.standing)
        return self._show(with_preset(self._preset_shown(preset), before, sheet.settings), preset, instead_of=sheet)

    def _suggest(self, sheet: Sheet, *given: Any) -> dict[Any, Any]:
        return self.suggesting.suggest(sheet, self._preset_shown(sheet.standing), *given)

    def _take_suggestion(self, sheet: Sheet, found: tuple[str, Suggestion] | None) -> dict[Any, Any]:
        """The suggested settings; name and trigger stay as a person chose them."""
        if found is None or not self.suggesting.is_of(sheet, found):
            return self.suggesting.refused(["It is of another dataset: press Suggest settings again."])
        settings = self.form.show(found[1].config())
        settings = with_preset(settings, self._preset_shown(sheet.standing), sheet.settings)
        return self._show(settings, found[1].preset, instead_of=sheet)

    def _reset(self, sheet: Sheet) -> dict[Any, Any]:
        return self._show(self._preset_shown(sheet.standing), sheet.standing, instead_of=sheet)

    def _reset_one(self, sheet: Sheet) -> dict[Any, Any]:
        name = sheet.pressed["reset"]
        settings = {**sheet.settings, name: self._preset_shown(sheet.standing)[name]}
        return self._show(settings, sheet.standing, instead_of=sheet if sheet.has_other_yaml else None)

    def _import(self, uploaded: str, asked: str) -> dict[Any, Any]:
        """A file in place of the form's settings."""
        return {self.filled: asked, **self.yaml.take_file(uploaded, lambda config: self.fill(config, asked))}

    def _save_preset(self, draft: Sheet | None, name: str, purpose: str) -> dict[Any, Any]:
        if draft is None:
            return {self.saving.name: gr.skip()}
        saved = self.saving.save(self.reporter.draft(draft), name, purpose)
        return {
            self.preset: gr.update(choices=presets.choices(self.context.workspace.presets), value=saved.name),
            self.standing: saved.name,
            **self.saving.emptied(),
            **self._report(draft.on(saved.name)),
        }

    def _start(self, sheet: Sheet) -> dict[Any, Any]:
        return self._begin(sheet, self.services.watch.start)

    def _enqueue(self, sheet: Sheet) -> dict[Any, Any]:
        return self._begin(sheet, self.services.watch.enqueue)

    def _begin(self, sheet: Sheet, begin: Callable[[TrainConfig], RunHandle]) -> dict[Any, Any]:
        if sheet.is_stale:
            words = "The form changed while you pressed: look, then press again."
            return {self.beside.problems: self.reporter.panel([words])}
        found = self.reporter.draft(sheet)
        if found.config is None or found.problems:
            return self._report(sheet)
        try:
            handle = begin(found.config)
        except SdloraError as error:
            return {self.beside.problems: self.reporter.panel(listed(error))}
        begun = {self.selected_run: handle.name, self.context.tabs: self.context.go_to("runs")}
        return {**begun, **self._report(sheet)}

    def _stop(self, said: Report | None) -> dict[Any, Any]:
        run = self.services.watch.snapshot(now=True).find(said.training if said else None)
        if run is not None and run.state.is_active:
            run.handle.stop()
        return {self.beside.status: view.stopping()}

    def _stamp(self) -> object:
        seen = self.services.watch.snapshot()
        checking = each_second(self.services.forecaster.is_checking)
        # A dataset that is repaired meanwhile has its folder's time changed: captions are replaced, never overwritten.
        return (
            tuple(run.name for run in seen.active),
            seen.waiting,
            folders.stamps(self.context.workspace.datasets),
            checking,
        )

    def _tick(self, draft: Sheet | None, said: Report | None) -> Any:
        """Follow the dry run and the runs; says only what is new."""
        if draft is None:
            return gr.skip()
        now = self.reporter.report(draft)
        return gr.skip() if now == said else self._updates(now, said)

    def _fill_instead(self, config: TrainConfig, sheet: Sheet) -> dict[Any, Any]:
        """A configuration in place of what the form shows, compared with the same preset."""
        return self._show(self.form.show(config), sheet.standing, instead_of=sheet.agreeing())

    def _show(self, settings: Mapping[str, Any], preset: str, instead_of: Sheet | None = None) -> dict[Any, Any]:
        """Fill the form and say what follows from it. instead_of: what Undo brings back, if that is something else."""
        undoable = instead_of is not None and (
            instead_of.has_other_yaml
            or (
                instead_of.differs(self.form.fields, settings, preset)
                and bool(
                    changed_settings(self.form.fields, self._preset_shown(instead_of.standing), instead_of.settings)
                )
            )
        )
        return {
            self.preset: preset,
            self.standing: preset,
            self.about: view.about_preset(preset),
            self.aside: view.offer_undo(presets.title(preset)) if undoable else "",
            self.before: instead_of if undoable else None,
            self.yaml.problems: "",
            **self.form.updates(settings),
            **self._report(Sheet(settings, preset, preset)),
        }

    def _report(self, sheet: Sheet) -> dict[Any, Any]:
        """Everything beside the form, for what the form shows; remembers that."""
        self.context.state.update({"train.form": sheet.settings, "train.preset": sheet.standing})
        return {self.draft: sheet, **self._updates(self.reporter.report(sheet), None)}

    def _updates(self, now: Report, said: Report | None) -> dict[Any, Any]:
        """What has changed beside the form, and in the YAML that follows it."""
        return {**self.beside.show(now, said), **self.yaml.show(now.yaml, None if said is None else said.yaml)}

    def _preset_shown(self, preset: str) -> dict[str, Any]:
        return self.form.show(presets.load(preset))
