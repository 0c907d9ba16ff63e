"""The adapter library's panel: search, pictures, what an adapter says about itself, upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.thumbnails import thumbnail, tile
from sdlora.errors import SdloraError
from sdlora.library.rows import add, to_tags
from sdlora.library.scan import LibraryEntry, add_file
from sdlora.words import count
from webui.context import EACH_COUNTS, LAST_COUNTS, QUEUED, QUICK, Context, handler
from webui.layout import problems_html
from webui.mix import view
from webui.paging import page_of
from webui.pieces import empty, found, notes
from webui.problems import panel

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
                min_width=130, interactive=True,
            )  # fmt: skip
        self.gallery = gr.Gallery(
            label="Library", show_label=False, columns=4, allow_preview=False, object_fit="cover",
            elem_id="mix-library", elem_classes="tiles", interactive=False, buttons=[], fit_columns=False,
        )  # fmt: skip
        self.found = gr.HTML(elem_id="mix-library-found")
        with gr.Row(visible=False) as self.pager:
            self.page = gr.Slider(
                1, 2, 1, step=1, label="Page", info=f"{PAGE_ADAPTERS} adapters a page.", elem_id="mix-page",
                interactive=True, buttons=[],
            )  # fmt: skip
        with gr.Row(elem_classes="row-end"):
            self.pick = gr.Dropdown(
                [], label="Adapter", info="Press a picture above, or type a name.", elem_id="mix-pick", scale=5,
                min_width=170, interactive=True,
            )  # fmt: skip
            self.add = gr.Button("Add", variant="primary", elem_id="mix-add", scale=1, min_width=80)
            self.refresh = gr.Button("Look again", elem_id="mix-refresh", scale=1, min_width=110)
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

    def wire(self, changes: gr.State, tags: gr.Textbox) -> None:
        """Connect everything. changes: counts the rows' changes; tags: their text."""
        asked = [self.search, self.family, self.page]
        for event in (self.search.input, self.family.input, self.page.input):
            event(handler(self.show), asked, self.shown, **LAST_COUNTS)
        self.refresh.click(handler(self.look_again), asked, self.shown, api_visibility="private")
        self.context.shared["tab.mix"].select(handler(self.look_again), asked, self.shown, **QUICK)
        self.gallery.select(handler(self._select), asked, [self.pick, self.card], **EACH_COUNTS)
        self.pick.input(handler(self._show_card), [self.pick], [self.card], **LAST_COUNTS)
        self.add.click(handler(self._add), [self.pick, changes], [changes, tags], **QUEUED)
        self.upload.upload(
            handler(self._upload), [self.upload, *asked], [self.upload, self.refused, *self.shown],
            api_visibility="private",
        )  # fmt: skip

    # ---- handlers

    def show(self, text: str, family: str, page: int) -> tuple[Any, ...]:
        """The page of what the last scan found."""
        scan = self.services.adapters
        fitting = scan.search(text, family or None)
        shown = page_of(fitting, page, PAGE_ADAPTERS)
        words = _found_words(len(fitting), len(scan.entries), text or family)
        return (
            gr.Gallery(value=[(str(self._picture(entry)), entry.name) for entry in shown.items], selected_index=None),
            words + notes(scan.problems, "These files can't be read"),
            gr.Dropdown(choices=[(entry.tag, str(entry.path)) for entry in fitting]),
            gr.Row(visible=shown.num_pages > 1),
            gr.Slider(maximum=max(2, shown.num_pages), value=shown.number),
        )

    def look_again(self, text: str, family: str, page: int) -> tuple[Any, ...]:
        """The same after another scan of the folders."""
        self.services.scan()
        return self.show(text, family, page)

    def _picture(self, entry: LibraryEntry) -> Path:
        thumbnails = self.context.workspace.thumbnails
        return thumbnail(entry.file.preview, thumbnails) if entry.file.preview else tile(entry.name, thumbnails)

    def _select(self, text: str, family: str, page: int, event: gr.SelectData) -> tuple[Any, str]:
        shown = page_of(self.services.adapters.search(text, family or None), page, PAGE_ADAPTERS).items
        if event.index >= len(shown):
            return gr.skip(), ""
        entry = shown[event.index]
        return str(entry.path), view.card(entry)

    def _show_card(self, path: str | None) -> str:
        return view.card(self.services.adapters.by_path(path) if path else None)

    def _add(self, path: str | None, count: int) -> tuple[Any, Any]:
        entry = self.services.adapters.by_path(path) if path else None
        if entry is None:
            raise gr.Error("Choose an adapter first: press its picture, or type its name.", print_exception=False)
        rows = self.services.active.change(lambda rows: add(rows, entry))
        return count + 1, to_tags(rows, self.services.adapters)

    def _upload(self, paths: list[str] | None, text: str, family: str, page: int) -> tuple[Any, ...]:
        refused, added = [], []
        for path in paths or []:
            try:
                added.append(add_file(Path(path), Path(path).name, self.context.workspace.adapters))
            except (SdloraError, OSError) as error:
                refused.append(str(error))
        if added:
            gr.Info(f"{len(added)} added to the library.", duration=4)
        return None, panel(refused), *self.look_again(text, family, page)


def _found_words(number: int, all_of_them: int, is_filtered: str) -> str:
    if not all_of_them:
        return str(empty("No adapters yet. Train one in Train, or upload a .safetensors file below."))
    if not number:
        return str(empty("Nothing fits. Search for less, or choose every family."))
    of_all = f"{number} of {count(all_of_them, 'adapter')}" if is_filtered else count(number, "adapter")
    return str(found(of_all))
