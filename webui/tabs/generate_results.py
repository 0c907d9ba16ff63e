"""What is generated and was generated: the newest request, the history on disk, and settings out of pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from sdlora.data.thumbnails import thumbnail
from sdlora.errors import DataError
from sdlora.generation.restore.image_files import read_image_text
from sdlora.generation.restore.repeat import restore_image
from sdlora.library.rows import from_used
from webui.context import EACH_COUNTS, LAST_COUNTS, QUEUED, QUICK, Context, handler
from webui.downloads import download_button
from webui.drawing import view
from webui.drawing.history import write_zip
from webui.drawing.requests import Drawing
from webui.drawing.studio import Studio
from webui.trash import Deleted, move_to_trash, put_back

if TYPE_CHECKING:
    from webui.tabs.generate import GenerateTab

_CAPTION = 60
_DELETE = """(path, ...rest) => {
  const name = (path || "").split(/[\\\\/]/).pop();
  if (!path || !confirm(`Move ${name} to the trash?`)) throw new Error("cancelled");
  return [path, ...rest];
}"""
_DROPS = [".png", ".jpg", ".jpeg", ".webp"]


class ResultsPanel:
    """The right-hand side of the tab."""

    def __init__(self, context: Context, studio: Studio) -> None:
        self.context, self.studio = context, studio
        self._deleted: list[Deleted] = []
        with gr.Tabs(elem_id="generate-views"):
            with gr.Tab("Result", id="result", elem_id="generate-result"):
                self.progress = gr.HTML(view.progress(None), elem_id="generate-progress")
                self.queue = gr.HTML(elem_id="generate-queue")
                self.gallery = gr.Gallery(
                    label="Result", show_label=False, columns=2, height=460, object_fit="contain", visible=False,
                    elem_id="generate-gallery", interactive=False, buttons=["download", "fullscreen"],
                )  # fmt: skip
            with gr.Tab("History", id="history", elem_id="generate-history-tab") as self.history_tab:
                self._lay_out_history()
            with gr.Tab("From a picture", id="picture", elem_id="generate-picture-tab"):
                self.drop = gr.File(
                    label="PNG, JPEG or WebP with settings in it",
                    file_types=_DROPS,
                    elem_id="generate-drop",
                    height=150,
                )
                gr.Markdown("Pictures of sdlora, AUTOMATIC1111's web UI, Forge and their relatives.")
        self._lay_out_selected()

    # ---- layout

    def _lay_out_history(self) -> None:
        with gr.Row(elem_classes="row-end"):
            self.search = gr.Textbox(
                label="Search", info="Words of the prompt, adapter, sampler, seed.", max_lines=1, scale=4,
                elem_id="generate-search", min_width=170,
            )  # fmt: skip
            self.page = gr.Slider(
                1, 2, 1, step=1, label="Page", info="48 images a page.", elem_id="generate-page", scale=3,
                min_width=150, interactive=True, buttons=[],
            )  # fmt: skip
        self.found = gr.HTML(elem_id="generate-history-found")
        self.history = gr.Gallery(
            label="History", show_label=False, columns=5, allow_preview=False, object_fit="cover",
            elem_id="generate-history", elem_classes="tiles", interactive=False, buttons=[],
        )  # fmt: skip
        with gr.Row():
            download_button("Download all found as zip", self._zip, [self.search], "generate-zip")
            self.undo = gr.Button("Undo delete", size="sm", visible=False, elem_id="generate-undo")

    def _lay_out_selected(self) -> None:
        self.selected = gr.State(None)
        with gr.Column(visible=False, elem_id="generate-selected") as self.selected_panel:
            self.picture = gr.HTML(elem_id="generate-picture")
            self.text = gr.Textbox(
                label="Its settings", info="As other tools read them.", lines=4, max_lines=12, interactive=False,
                buttons=["copy"], elem_id="generate-text",
            )  # fmt: skip
            with gr.Row(elem_classes="acts"):
                self.use_all = gr.Button("Use all", size="sm", elem_id="generate-restore-all", min_width=80)
                self.use_others = gr.Button(
                    "Use all but the seed", size="sm", elem_id="generate-restore-remix", min_width=140
                )
                self.send = gr.Button("Start image to image", size="sm", elem_id="generate-send", min_width=140)
                self.delete = gr.Button("Delete", size="sm", elem_id="generate-delete", min_width=80)
        self.notes = gr.HTML(elem_id="generate-notes")

    # ---- wiring

    def wire(self, tab: GenerateTab) -> None:
        """Connect everything."""
        self._tab = tab
        self._wire_poll(tab)
        listed = [self.history, self.found, self.page]
        asked = [self.search, self.page]
        for event in (self.search.input, self.page.input):
            event(handler(self._show_history), asked, listed, **LAST_COUNTS)
        self.history_tab.select(handler(self._show_history), asked, listed, **QUICK)
        chosen = [self.selected, self.selected_panel, self.picture, self.text]
        self.gallery.select(handler(self._select_result), None, chosen, **EACH_COUNTS)
        self.history.select(handler(self._select_history), asked, chosen, **EACH_COUNTS)
        self.drop.upload(handler(self._select_dropped), [self.drop], chosen, **QUICK)
        filled = [
            *tab.form.outputs,
            self.context.shared["mix.tags"],
            tab.changes,
            tab.start.editor,
            tab.start.is_on,
            self.notes,
        ]
        for button, with_seed in ((self.use_all, True), (self.use_others, False)):
            button.click(handler(self._restorer(with_seed)), [self.selected, tab.changes], filled, **QUEUED)
        self.send.click(
            handler(self._send), [self.selected], [tab.start.editor, tab.start.is_on, tab.start.panel], **QUEUED
        )
        self.delete.click(
            handler(self._delete), [self.selected, *asked], [*chosen, self.undo, *listed], js=_DELETE, **QUEUED
        )
        self.undo.click(handler(self._undo), asked, [self.undo, *listed], **QUICK)
        tab.cancel.click(handler(self._cancel), None, None, **QUICK)

    def _wire_poll(self, tab: GenerateTab) -> None:
        """What is being generated, each second and when a page opens; kept in the server, so that a reload finds it."""
        seen = gr.State("")
        shared = self.context.shared
        outputs = [
            seen, self.progress, self.queue, self.gallery, tab.cancel, shared["mix.progress"], shared["mix.sheet"],
        ]  # fmt: skip
        self.context.timer.tick(handler(self._poll), [seen], outputs, concurrency_limit=None, **QUICK)

    def _poll(self, seen: str) -> Any:
        drawings = self.studio.drawings
        drawings.yield_to_training()
        drawing = drawings.current()
        if drawing is None:
            return gr.skip()
        now = _stamp(drawing, len(drawings.all()))
        if now == seen:
            return gr.skip()
        waiting = sum(not other.is_over for other in drawings.all() if other.id != drawing.id)
        progress = view.progress(drawing, waiting)
        pictures: Any = gr.skip()
        sheet: Any = gr.skip()
        if _pictures_part(now) != _pictures_part(seen):
            pictures = gr.Gallery(value=_tiles(drawing), visible=bool(drawing.images), selected_index=None)
            sheet = view.picture(drawing.sheet, f"Sheet of {drawing.title}") if drawing.sheet else ""
        return [
            now,
            progress,
            view.requests(drawings.all()),
            pictures,
            gr.Button(interactive=not drawing.is_over),
            progress if drawing.is_grid else "",
            sheet,
        ]

    # ---- handlers

    def _cancel(self) -> None:
        drawing = self.studio.drawings.current()
        if drawing is not None:
            self.studio.drawings.cancel(drawing.id)

    def _show_history(self, text: str, number: float) -> tuple[Any, ...]:
        page = self.studio.history.page(int(number or 1), text or "")
        thumbnails = self.studio.workspace.thumbnails
        tiles = [(str(thumbnail(image.path, thumbnails)), image.prompt[:_CAPTION]) for image in page.images]
        if page.num_images:
            words = f'<p class="found" role="status">{page.num_images} image{"" if page.num_images == 1 else "s"}</p>'
        else:
            words = view.empty("Nothing fits. Search for less." if text else "No images yet. Press Generate.")
        pages = gr.Slider(maximum=max(2, page.num_pages), value=page.number, visible=page.num_pages > 1)
        return gr.Gallery(value=tiles, selected_index=None), words, pages

    def _select_result(self, event: gr.SelectData) -> tuple[Any, ...]:
        drawing = self.studio.drawings.current()
        pictures = _pictures(drawing) if drawing is not None else []
        if event.index >= len(pictures):
            return None, gr.skip(), gr.skip(), gr.skip()
        return self._selected(pictures[event.index], is_shown=False)

    def _select_history(self, text: str, number: float, event: gr.SelectData) -> tuple[Any, ...]:
        images = self.studio.history.page(int(number or 1), text or "").images
        if event.index >= len(images):
            return None, gr.skip(), gr.skip(), gr.skip()
        return self._selected(images[event.index].path, is_shown=True)

    def _select_dropped(self, path: str | None) -> tuple[Any, ...]:
        return self._selected(Path(path), is_shown=True) if path else (None, gr.skip(), gr.skip(), gr.skip())

    def _selected(self, path: Path, *, is_shown: bool) -> tuple[Any, ...]:
        """The picture's settings as text; the picture itself where its gallery shows only a thumbnail."""
        try:
            text = read_image_text(path)
        except DataError as error:
            text = str(error)
        picture = view.picture(path, "The chosen picture") if is_shown else ""
        return str(path), gr.Column(visible=True), picture, text or "This picture carries no settings."

    def selected_seed(self, drawing: Drawing) -> int:
        """The seed to reuse: that of the newest request's first image."""
        return drawing.progress.seeds[0]

    def _restorer(self, with_seed: bool) -> Any:
        def use(path: str | None, count: int) -> dict[Any, Any]:
            if not path:
                raise gr.Error("Choose a picture first.", print_exception=False)
            return self._restore(Path(path), count, with_seed=with_seed)

        return use

    def _restore(self, path: Path, count: int, *, with_seed: bool) -> dict[Any, Any]:
        """Fill the form, the rows and the start image from a picture; list what could not be taken over."""
        tab, studio = self._tab, self.studio
        found = restore_image(path, studio.adapter_folders, studio.models(), with_seed=with_seed)
        everything = tab.form.show(found.config)
        shown = {name: everything[name] for name in found.names if name in everything}
        updates = tab.show(shown)
        updates[self.context.shared["mix.tags"]] = tab.use_rows(from_used(found.adapters))
        updates[tab.changes] = count + 1
        updates[self.notes] = view.notes(found.notes, "Not taken over from the picture") or view.notes(
            ["Everything was taken over."], path.name
        )
        return updates | tab.start.use(found.start_image)

    def _send(self, path: str | None) -> dict[Any, Any]:
        if not path:
            raise gr.Error("Choose a picture first.", print_exception=False)
        gr.Info("It is the start image now. Paint over it to generate only a part anew.", duration=5)
        return {**self._tab.start.use(Path(path)), self._tab.start.panel: gr.Accordion(open=True)}

    def _delete(self, path: str | None, text: str, number: float) -> tuple[Any, ...]:
        chosen = Path(path) if path else None
        if chosen is None or self.studio.workspace.outputs not in chosen.parents:
            raise gr.Error("Only images of this workspace's outputs can be deleted.", print_exception=False)
        self._deleted = move_to_trash([chosen], self.studio.workspace.trash)
        gr.Info(f"{chosen.name} is in the trash.", duration=4)
        hidden = (None, gr.Column(visible=False), "", "")
        return (*hidden, gr.Button(visible=bool(self._deleted)), *self._show_history(text, number))

    def _undo(self, text: str, number: float) -> tuple[Any, ...]:
        put_back(self._deleted)
        self._deleted = []
        return gr.Button(visible=False), *self._show_history(text, number)

    def _zip(self, text: str) -> Path:
        images = [image.path for image in self.studio.history.images(text or "")]
        if not images:
            raise gr.Error("There are no images to put into a zip.", print_exception=False)
        name = f"sdlora-{time.strftime('%Y%m%d-%H%M%S')}.zip"
        return write_zip(images, self.studio.workspace.exports / name)


def _pictures(drawing: Drawing) -> list[Path]:
    return [*([drawing.sheet] if drawing.sheet else []), *drawing.images]


def _tiles(drawing: Drawing) -> list[tuple[str, str]]:
    now = drawing.progress
    captions = (
        [", ".join(labels) for labels in now.labels] if drawing.is_grid else [f"seed {seed}" for seed in now.seeds]
    )
    tiles = [(str(path), caption) for path, caption in zip(drawing.images, captions, strict=False)]
    return [*([(str(drawing.sheet), "the whole grid")] if drawing.sheet else []), *tiles]


def _stamp(drawing: Drawing, count: int) -> str:
    """Changes when something on the page would."""
    now = drawing.progress
    pictures = f"{drawing.id}/{len(drawing.images)}/{drawing.sheet}"
    return f"{pictures}|{drawing.status}/{now.step}/{now.previews_made}/{count}"


def _pictures_part(stamp: str) -> str:
    return stamp.partition("|")[0]
