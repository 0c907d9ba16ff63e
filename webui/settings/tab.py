"""The settings tab: light or dark, what is where, memory and versions, cache and trash."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import gradio as gr

from sdlora.data.cache import Cache, default_cache_folder
from sdlora.errors import ConfigError
from sdlora.launch import machine
from sdlora.trash import empty_folder, size_of
from sdlora.words import size_in_words
from webui.context import LAST_COUNTS, PRIVATE, QUICK, Context, confirm, handler
from webui.layout import hidden_text, live_html, problems_html, small_button
from webui.pieces import table
from webui.problems import panel, shown_in
from webui.services import FOLDERS_STATE, named_folders
from webui.settings import view

THEMES = ["system", "light", "dark"]
_KEPT_THEME = "() => localStorage.getItem('sdlora.theme') || 'system'"


def build(context: Context) -> None:
    """Lay out the tab."""
    SettingsTab(context)


class SettingsTab:
    """Facts are read when the tab is opened, and by Refresh."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._lay_out()
        self._wire()

    def _lay_out(self) -> None:
        gr.HTML("<h2>Settings</h2>", elem_classes="tab-title")
        with gr.Row(elem_classes="page-columns settings-columns"):
            with gr.Column():
                self.theme = gr.Radio(
                    THEMES, value="system", label="Colours", info="Kept in this browser.", elem_id="settings-theme"
                )
                gr.Markdown("### Folders")
                self.folders = gr.HTML("", elem_id="settings-folders")
                self.adapter_folders = gr.Textbox(
                    label="Further adapter folders",
                    info="One a line. Mix and Generate list what lies in them and below.",
                    lines=2,
                    max_lines=6,
                    elem_id="settings-adapter-folders",
                )
                self.missing = live_html("settings-missing")
            with gr.Column():
                self._lay_out_cache()
                self._lay_out_trash()
            with gr.Column():
                gr.Markdown("### This machine")
                self.machine = gr.HTML("", elem_id="settings-machine")
                self.torch = gr.HTML("", elem_id="settings-torch")
                with gr.Row(elem_classes="bar"):
                    self.refresh = small_button("Refresh", "settings-refresh", 90)
                    self.ask_torch = small_button("Ask PyTorch for its devices", "settings-ask-torch", 210)
                gr.Markdown("### Versions")
                self.versions = gr.HTML("", elem_id="settings-versions")

    def _lay_out_cache(self) -> None:
        gr.Markdown("### Cache")
        self.cache = live_html("settings-cache")
        with gr.Row():
            self.keep_gib = gr.Number(
                20,
                label="Keep at most (GiB)",
                info="What was used least recently goes first.",
                elem_id="settings-keep-gib",
                min_width=150,
            )
            self.keep_days = gr.Number(
                90,
                label="Keep for (days)",
                info="Counted from the last use.",
                precision=0,
                elem_id="settings-keep-days",
                min_width=150,
            )
        self.cache_problems = problems_html("settings-cache-problems", elem_classes="bare")
        self.prune = small_button("Prune the cache", "settings-prune", 150)
        self.context.remember("settings.keep_gib", self.keep_gib)
        self.context.remember("settings.keep_days", self.keep_days)

    def _lay_out_trash(self) -> None:
        gr.Markdown("### Trash")
        self.trash = live_html("settings-trash")
        with gr.Column(elem_classes="off-page"):
            self.counted = hidden_text("settings-trash-counted", "The trash as it was counted")
        self.trash_problems = problems_html("settings-trash-problems", elem_classes="bare")
        self.empty = small_button("Empty the trash", "settings-empty-trash", 150, variant="stop")

    def _wire(self) -> None:
        self.theme.input(None, self.theme, None, js="(choice) => { window.sdloraTheme(choice); return []; }", **PRIVATE)
        self.context.remember(FOLDERS_STATE, self.adapter_folders)
        self.adapter_folders.change(
            handler(lambda lines: view.missing(named_folders(lines))), self.adapter_folders, self.missing, **LAST_COUNTS
        )
        trash = [self.trash, self.counted, self.empty]
        facts = [self.folders, self.machine, self.versions, self.cache, *trash]
        tab = self.context.shared["tab.settings"]
        tab.select(handler(self._look), None, facts, **QUICK)
        # Kept by the browser: page.js sets the colours before the server is asked for anything.
        tab.select(None, None, self.theme, js=_KEPT_THEME, **PRIVATE)
        self.refresh.click(handler(self._look), None, facts, **QUICK)
        self.ask_torch.click(
            handler(lambda: table(machine.ask_torch())),
            None,
            self.torch,
            api_visibility="private",
            show_progress="full",
        )
        pruned = shown_in(self.cache_problems, self._prune)
        self.prune.click(pruned, [self.keep_gib, self.keep_days], [self.cache, self.cache_problems], **PRIVATE)
        self.empty.click(
            shown_in(self.trash_problems, self._empty),
            self.counted,
            [*trash, self.folders, self.trash_problems],
            js=confirm("Delete {#trash-count} for good? There is no way back."),
            **PRIVATE,
        )

    def _look(self) -> dict[Any, Any]:
        return {
            self.folders: self._folders(),
            self.machine: table([*machine.memory(), *machine.cards()]),
            self.versions: table(machine.versions()),
            self.cache: self._cache_words(),
            **self._trash_facts(),
        }

    def _folders(self) -> str:
        workspace = self.context.workspace
        known = (
            ("Datasets", workspace.datasets),
            ("Runs", workspace.runs),
            ("Adapters", workspace.adapters),
            ("Base models", workspace.models),
            ("Mixes", workspace.mixes),
            ("Folders of images", workspace.outputs),
            ("Trash", workspace.trash),
        )
        rows = [(what, folder, machine.count_entries(folder)) for what, folder in known]
        return str(view.folders(workspace.root, machine.disk_words(workspace.root), rows))

    def _cache_words(self, before: str = "") -> str:
        summary = Cache(default_cache_folder()).summary()
        words = f"{before}{summary.entries} encoded images and captions, {size_in_words(summary.size_bytes)}, in"
        return str(view.cache(words, summary.folder))

    def _prune(self, keep_gib: float | None, keep_days: float | None) -> dict[Any, Any]:
        # No minimum on the fields: Gradio would refuse the value in a message that names no setting.
        given = (("Keep at most", keep_gib), ("Keep for", keep_days))
        problems = [f"{label}: {value:g} is below 0" for label, value in given if value is not None and value < 0]
        if problems:
            raise ConfigError("the cache", problems)
        removed = Cache(default_cache_folder()).prune(
            max_bytes=None if keep_gib is None else int(keep_gib * 2**30),
            older_than=None if keep_days is None else timedelta(days=keep_days),
        )
        words = f"Removed {removed.entries} ({size_in_words(removed.size_bytes)}). "
        return {self.cache: self._cache_words(words)}

    def _trash_facts(self, before: str = "") -> dict[Any, Any]:
        trash = self.context.workspace.trash
        names = sorted(path.name for path in trash.iterdir())
        return {
            self.trash: view.trash(before, len(names), size_of(trash)),
            self.counted: json.dumps(names),
            self.empty: gr.Button(interactive=bool(names)),
        }

    def _empty(self, counted: str) -> dict[Any, Any]:
        """Delete for good what the question was about, and nothing that came into the trash since."""
        facts = self._trash_facts()
        if facts[self.counted] != counted:
            words = "Other things lie in the trash by now: look, then press again."
            return {**facts, self.folders: self._folders(), self.trash_problems: panel([words])}
        gone = empty_folder(self.context.workspace.trash)
        return {**self._trash_facts(f"Deleted {gone.files} files. "), self.folders: self._folders()}
