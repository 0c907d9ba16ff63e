"""The settings tab: light or dark, what is where, memory and versions, cache and trash."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import gradio as gr

from sdlora.data.cache import Cache, default_cache_folder
from webui import system
from webui.context import LAST_COUNTS, PRIVATE, QUICK, Context, confirm, handler
from webui.drawing.studio import FOLDERS_STATE, named_folders

THEMES = ["system", "light", "dark"]
_KEPT_THEME = "() => localStorage.getItem('sdlora.theme') || 'system'"
_LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"


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
        with gr.Row(elem_classes="page-columns"):
            with gr.Column(min_width=320):
                self.theme = gr.Radio(
                    THEMES, value="system", label="Colours", info="Kept in this browser.", elem_id="settings-theme"
                )
                gr.Markdown("## Folders")
                self.folders = gr.HTML("", elem_id="settings-folders")
                self.adapter_folders = gr.Textbox(
                    label="Further adapter folders",
                    info="One a line. Mix and Generate list what lies in them and below.",
                    lines=2,
                    max_lines=6,
                    elem_id="settings-adapter-folders",
                )
                self.missing = gr.HTML("", elem_id="settings-missing", js_on_load=_LIVE)
                self._lay_out_cache()
                self._lay_out_trash()
            with gr.Column(min_width=320):
                gr.Markdown("## This machine")
                self.machine = gr.HTML("", elem_id="settings-machine")
                self.torch = gr.HTML("", elem_id="settings-torch")
                with gr.Row(elem_classes="bar"):
                    self.refresh = gr.Button("Refresh", elem_id="settings-refresh", size="sm", min_width=90, scale=0)
                    self.ask_torch = gr.Button(
                        "Ask PyTorch for its devices", elem_id="settings-ask-torch", size="sm", min_width=210, scale=0
                    )
                gr.Markdown("## Versions")
                self.versions = gr.HTML("", elem_id="settings-versions")

    def _lay_out_cache(self) -> None:
        gr.Markdown("## Cache")
        self.cache = gr.HTML("", elem_id="settings-cache", js_on_load=_LIVE)
        with gr.Row():
            self.keep_gib = gr.Number(
                20,
                label="Keep at most (GiB)",
                info="What was used least recently goes first.",
                minimum=0,
                elem_id="settings-keep-gib",
                min_width=150,
            )
            self.keep_days = gr.Number(
                90,
                label="Keep for (days)",
                info="Counted from the last use.",
                minimum=0,
                precision=0,
                elem_id="settings-keep-days",
                min_width=150,
            )
        self.prune = gr.Button("Prune the cache", elem_id="settings-prune", size="sm")
        self.context.remember("settings.keep_gib", self.keep_gib)
        self.context.remember("settings.keep_days", self.keep_days)

    def _lay_out_trash(self) -> None:
        gr.Markdown("## Trash")
        self.trash = gr.HTML("", elem_id="settings-trash", js_on_load=_LIVE)
        self.empty = gr.Button("Empty the trash", variant="stop", elem_id="settings-empty-trash", size="sm")

    def _wire(self) -> None:
        self.theme.input(None, self.theme, None, js="(choice) => { window.sdloraTheme(choice); return []; }", **PRIVATE)
        self.context.remember(FOLDERS_STATE, self.adapter_folders)
        self.adapter_folders.change(handler(_missing), self.adapter_folders, self.missing, **LAST_COUNTS)
        facts = [self.folders, self.machine, self.versions, self.cache, self.trash, self.empty]
        tab = self.context.shared["tab.settings"]
        tab.select(handler(self._look), None, facts, **QUICK)
        tab.select(None, None, self.theme, js=_KEPT_THEME, **PRIVATE)
        self.context.on_load.append((self._look_if_open, [], facts))
        self.refresh.click(handler(self._look), None, facts, **QUICK)
        self.ask_torch.click(
            handler(lambda: _table(system.ask_torch())),
            None,
            self.torch,
            api_visibility="private",
            show_progress="full",
        )
        self.prune.click(handler(self._prune), [self.keep_gib, self.keep_days], self.cache, **PRIVATE)
        self.empty.click(
            handler(self._empty),
            None,
            [self.trash, self.empty, self.folders],
            js=confirm("Delete {#trash-count} for good? There is no way back."),
            **PRIVATE,
        )

    def _look_if_open(self) -> dict[Any, Any]:
        """Facts when the page opens on this tab; else they would be asked for in vain."""
        return self._look() if self.context.state.get("page.tab") == "settings" else {self.folders: gr.skip()}

    def _look(self) -> dict[Any, Any]:
        return {
            self.folders: self._folders(),
            self.machine: _table([*system.memory(), *system.cards()]),
            self.versions: _table(system.versions()),
            self.cache: self._cache_words(),
            **self._trash_facts(),
        }

    def _folders(self) -> str:
        workspace = self.context.workspace
        rows = "".join(
            f"<tr><th scope=row>{place.what}</th><td>{place.entries}</td>"
            f"<td><code>{html.escape(str(place.path))}</code></td></tr>"
            for place in system.places(workspace)
        )
        head = "<thead><tr><th scope=col>What</th><th scope=col>How many</th><th scope=col>Where</th></tr></thead>"
        return (
            f"<p><code>{html.escape(str(workspace.root))}</code>: {system.disk_words(workspace.root)}. "
            f"<code>--root</code> chooses another folder.</p><table class='plain'>{head}<tbody>{rows}</tbody></table>"
        )

    def _cache_words(self, before: str = "") -> str:
        summary = Cache(default_cache_folder()).summary()
        words = f"{before}{summary.entries} encoded images and captions, {system.gib(summary.size_bytes)}, in"
        return f"<p>{words} <code>{html.escape(str(summary.folder))}</code></p>"

    def _prune(self, keep_gib: float | None, keep_days: float | None) -> str:
        removed = Cache(default_cache_folder()).prune(
            max_bytes=None if keep_gib is None else int(keep_gib * 2**30),
            older_than=None if keep_days is None else timedelta(days=keep_days),
        )
        return self._cache_words(f"Removed {removed.entries} ({system.gib(removed.size_bytes)}). ")

    def _trash_facts(self, before: str = "") -> dict[Any, Any]:
        trash = self.context.workspace.trash
        size, things = system.size_of(trash), len(list(trash.iterdir()))
        count = f"{things} deleted item{'' if things == 1 else 's'} ({system.gib(size.size_bytes)})"
        return {
            self.trash: f'<p>{before}<span id="trash-count">{count}</span> in the trash.</p>',
            self.empty: gr.Button(interactive=things > 0),
        }

    def _empty(self) -> dict[Any, Any]:
        gone = system.empty(self.context.workspace.trash)
        return {**self._trash_facts(f"Deleted {gone.files} files. "), self.folders: self._folders()}


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows
    )
    return f"<table class='plain'><tbody>{cells}</tbody></table>"


def _missing(lines: str) -> str:
    """Which of the folders are not there."""
    missing = [folder for folder in named_folders(lines) if not folder.is_dir()]
    items = "".join(f"<li><code>{html.escape(str(folder))}</code> is no folder here</li>" for folder in missing)
    return f"<ul>{items}</ul>" if items else ""
