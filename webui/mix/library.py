"""The adapter library's panel: search, pictures, what an adapter says about itself, upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.thumbnails import thumbnail, tile
from sdlora.errors import AdapterError, SdloraError
from sdlora.library.rows import add
from sdlora.library.scan import LibraryEntry, add_file
from sdlora.words import count
from webui.context import EACH_COUNTS, LAST_COUNTS, QUICK, Context, as_message, handler
from webui.gradio_quirks import COMES_AND_GOES
from webui.layout import html, problems_html, tiles_html
from webui.mix import view
from webui.mix.rows import RowsPanel
from webui.paging import page_of
from webui.pieces import Tile, empty, found, notes, tiles
from webui.problems import panel, shown_in

PAGE_ADAPTERS = 24
FAMILIES = [("Every family", ""), ("SD 1.x", "sd1"), ("SD 2.x", "sd2"), ("SDXL", "sdxl")]
_UPLOADS = [".safetensors", ".pt", ".pth", ".ckpt", ".bin"]
"""Pickles too: refused with the reason, which the browser's own refusal would not give."""


class LibraryPanel:
    """Its inputs; made inside a layout, wired once everything stands."""

    def __init__(self, context: Context) -> None:
        self.context, self.services = context, context.services
        gr.Markdown("### Library")
        with gr.Row():
            self.search = gr.Textbox(
                label="Search", info="Name, trigger words, tags, notes.", elem_id="mix-search", max_lines=1, scale=3,
                min_width=150,
            )  # fmt: skip
            self.family = gr.Dropdown(
                FAMILIES, value="", label="Family", info="What it fits.", elem_id="mix-family", scale=2,
                min_width=180, interactive=True,
            )  # fmt: skip
        self.gallery = tiles_html("mix-library")
        self.found = html("mix-library-found")
        with gr.Row(visible=False) as self.pager:
            self.page = gr.Slider(
                1, 2, 1, step=1, label="Page", info=f"{PAGE_ADAPTERS} adapters a page.", elem_id="mix-page",
                interactive=True, buttons=[],
            )  # fmt: skip
        with gr.Row(elem_classes="row-end"):
            self.pick = gr.Dropdown(
                [], label="Adapter", info="Press a picture above, or type a name.", elem_id="mix-pick", scale=5,
                min_width=170, interactive=True, **COMES_AND_GOES,
            )  # fmt: skip
            self.add = gr.Button("Add", variant="primary", elem_id="mix-add", scale=0, min_width=80)
            self.refresh = gr.Button("Look again", elem_id="mix-refresh", scale=0, min_width=110)
        self.problems = problems_html("mix-library-problems", elem_classes="bare")
        self.card = gr.HTML(elem_id="mix-card")
        with gr.Accordion("Upload adapter files", open=False, elem_id="mix-upload-panel"):
            self.upload = gr.File(
                label="Adapter files", file_count="multiple", file_types=_UPLOADS, elem_id="mix-upload", height=140
            )
            gr.Markdown("`.safetensors` only. Other kinds can run programs when they are opened, and are refused.")
            self.refused = problems_html("mix-upload-problems")

    @property
    def shown(self) -> list[Any]:
        """What `show` fills."""
        return [self.gallery, self.found, self.pick, self.pager, self.page]

    @property
    def asked(self) -> list[Any]:
        """The inputs of `show`."""
        return [self.search, self.family, self.page, self.pick]

    def wire(self, rows: RowsPanel) -> None:
        """Connect everything. rows: the adapters in use."""
        self.rows, asked = rows, self.asked
        for event in (self.search.input, self.family.input, self.page.input):
            event(handler(self.show), asked, self.shown, **LAST_COUNTS)
        self.refresh.click(handler(self.look_again), asked, self.shown, api_visibility="private")
        self.context.shared["tab.mix"].select(handler(self.look_again), asked, self.shown, **QUICK)
        carded = [self.card, self.problems]
        self.gallery.select(shown_in(self.problems, self._select), None, [self.pick, *carded], **EACH_COUNTS)
        self.pick.input(shown_in(self.problems, self._show_card), [self.pick], carded, **LAST_COUNTS)
        self.add.click(shown_in(self.problems, self._add), self.pick, [*carded, *rows.outputs], **QUICK)
        self.upload.upload(
            handler(self._upload), [self.upload, *asked], [self.upload, self.refused, *self.shown],
            api_visibility="private",
        )  # fmt: skip

    # ---- handlers

    def show(self, text: str, family: str, page: int, chosen: str | None) -> tuple[Any, ...]:
        """The page of what the last scan found, the chosen one marked."""
        scan = self.services.adapters
        fitting = scan.search(text, family or None)
        shown = page_of(fitting, page, PAGE_ADAPTERS)
        words = _found_words(len(fitting), len(scan.entries), text or family)
        return (
            tiles("Library", [self._tile(entry) for entry in shown.items], chosen),
            words + notes(scan.problems, "These files can't be read"),
            gr.Dropdown(choices=[(entry.tag, str(entry.path)) for entry in fitting]),
            gr.Row(visible=shown.num_pages > 1),
            gr.Slider(maximum=max(2, shown.num_pages), value=shown.number),
        )

    def look_again(self, text: str, family: str, page: int, chosen: str | None) -> tuple[Any, ...]:
        """The same after another scan of the folders."""
        self.services.scan()
        return self.show(text, family, page, chosen)

    def _picture(self, entry: LibraryEntry) -> Path:
        thumbnails = self.context.workspace.thumbnails
        return thumbnail(entry.file.preview, thumbnails) if entry.file.preview else tile(entry.name, thumbnails)

    def _tile(self, entry: LibraryEntry) -> Tile:
        about = entry.about
        return Tile(
            str(entry.path), self._picture(entry), entry.name, about.trigger or f"{about.kind} rank {about.rank}"
        )

    def _select(self, event: gr.EventData) -> dict[Any, Any]:
        """The pressed adapter, by its path: the list may have changed since it was shown."""
        path = str(event.pressed["tile"])
        # Looked up among what the scan found, so a path made up by whoever sends it leads nowhere.
        entry = self.services.adapters.by_path(path)
        if entry is None:
            raise AdapterError(f"{Path(path).name} is not in the library any more: press Look again.")
        return {self.pick: path, self.card: view.card(entry)}

    def _show_card(self, path: str | None) -> dict[Any, Any]:
        return {self.card: view.card(self.services.adapters.by_path(path) if path else None)}

    def _add(self, path: str | None) -> dict[Any, Any]:
        if not path:
            raise AdapterError("Choose an adapter first: press its picture, or type its name.")
        # What is typed is a name, and may be nobody's or several files'.
        entry = self.services.adapters.by_path(path) or self.services.adapters.find(path)
        self.services.active.change(lambda rows: add(rows, entry))
        return {self.card: view.card(entry), **self.rows.shown()}

    def _upload(
        self, paths: list[str] | None, text: str, family: str, page: int, chosen: str | None
    ) -> tuple[Any, ...]:
        refused, added, folder = [], [], self.context.workspace.adapters
        for path in map(Path, paths or []):
            there = {file.name for file in folder.glob("*.safetensors")}
            try:
                added.append(_added_words(path.name, add_file(path, path.name, folder).name, there))
            except (SdloraError, OSError) as error:
                refused.append(str(error))
        if added:
            plain = sum(not words for words in added)
            told = [f"{plain} added to the library."] if plain else []
            gr.Info(as_message("\n".join([*told, *filter(None, added)])), duration=4 if len(told) == 1 else 10)
        return None, panel(refused), *self.look_again(text, family, page, chosen)


def _added_words(name: str, kept: str, there: set[str]) -> str:
    """What is to be said of an upload; nothing where it was added under its name."""
    if kept in there:
        return f"{name} is in the library already" + (f", as {kept}." if kept != name else ".")
    return f"{name} was added as {Path(kept).stem}: another file has its name." if kept != name else ""


def _found_words(number: int, all_of_them: int, is_filtered: str) -> str:
    if not all_of_them:
        return str(empty("No adapters yet. Train one in Train, or upload a .safetensors file below."))
    if not number:
        return str(empty("Nothing fits. Search for less, or choose every family."))
    of_all = f"{number} of {count(all_of_them, 'adapter')}" if is_filtered else count(number, "adapter")
    return str(found(of_all))
