"""What is generated and was generated: the newest request, the history on disk, and settings out of pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.thumbnails import thumbnail
from sdlora.errors import DataError
from sdlora.generation.restore.history import HistoryImage, write_zip
from sdlora.generation.restore.image_files import read_image_text
from sdlora.generation.restore.repeat import restore_image
from sdlora.launch.images import ImageRequest
from sdlora.library.rows import from_used, only_taggable
from sdlora.trash import Deleted, move_to_trash, put_back
from sdlora.words import count
from webui.context import EACH_COUNTS, LAST_COUNTS, QUEUED, QUICK, handler
from webui.downloads import download_button
from webui.generate import view
from webui.generate.generating import Generating
from webui.layout import hidden_text, problems_html, tiles_html
from webui.paging import Page, page_of
from webui.pieces import Tile, empty, found, notes, picture, tiles
from webui.problems import panel, shown_in

PAGE_IMAGES = 48
_CAPTION = 60
_UNFINISHED = "generate.unfinished"
_DELETE = """(path, ...rest) => {
  const name = (path || "").split(/[\\\\/]/).pop();
  if (!path || !confirm(`Move ${name} to the trash?`)) throw new Error("cancelled");
  return [path, ...rest];
}"""
_DROPS = [".png", ".jpg", ".jpeg", ".webp"]


class ResultsPanel:
    """The right-hand side of the tab: newest request, history, settings out of a picture, the chosen picture."""

    def __init__(self, generating: Generating) -> None:
        self.generating = generating
        self.context, self.services = generating.context, generating.services
        # One for all open pages, as there is one folder of images: Undo brings back what any of them deleted last.
        self._deleted: list[Deleted] = []
        self._deleting = threading.Lock()
        generating.views = gr.Tabs(elem_id="generate-views")
        with generating.views:
            with gr.Tab("Result", id="result", elem_id="generate-result"):
                left = view.lost(self.services.state.get(_UNFINISHED))
                self.progress = gr.HTML(left or view.progress(None), elem_id="generate-progress")
                self.queue = gr.HTML(elem_id="generate-queue")
                self.gallery = tiles_html("generate-gallery")
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
                1, 2, 1, step=1, label="Page", info=f"{PAGE_IMAGES} images a page.", elem_id="generate-page", scale=3,
                min_width=150, interactive=True, buttons=[],
            )  # fmt: skip
        self.found = gr.HTML(elem_id="generate-history-found")
        self.history = tiles_html("generate-history")
        with gr.Row():
            self.zip = download_button("Download all found as zip", self._zip, [self.search], "generate-zip")
            self.undo = gr.Button("Undo delete", size="sm", visible=False, elem_id="generate-undo")

    def _lay_out_selected(self) -> None:
        with gr.Column(elem_classes="off-page"):
            self.selected = hidden_text("generate-chosen", "The chosen picture")
        self.problems = problems_html("generate-picture-problems", elem_classes="bare")
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

    def wire(self) -> None:
        """Connect everything."""
        self._wire_poll()
        generating, start = self.generating, self.generating.start
        listed = [self.history, self.found, self.page, self.zip]
        asked = [self.search, self.page]
        for event in (self.search.input, self.page.input):
            event(handler(self._show_history), asked, listed, **LAST_COUNTS)
        self.history_tab.select(handler(self._show_history), asked, listed, **QUICK)
        chosen = [self.selected, self.selected_panel, self.picture, self.text, self.notes, self.problems]

        def shown(act: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
            return shown_in(self.problems, act)

        for grid in (self.gallery, self.history):
            grid.select(shown(self._select), None, chosen, **EACH_COUNTS)
        self.drop.upload(shown(self._select_dropped), [self.drop], chosen, **QUICK)
        filled = [*generating.form.outputs, *generating.rows.outputs, start.editor, start.is_on, self.notes]
        for button, with_seed in ((self.use_all, True), (self.use_others, False)):
            button.click(shown(self._restorer(with_seed)), self.selected, [*filled, self.problems], **QUEUED)
        sent = [start.editor, start.is_on, start.panel, self.problems]
        self.send.click(shown(self._send), [self.selected], sent, **QUEUED)
        self.delete.click(
            shown(self._delete), [self.selected, *asked], [*chosen, self.undo, *listed], js=_DELETE, **QUEUED
        )
        self.undo.click(shown(self._undo), asked, [self.undo, self.problems, *listed], **QUICK)

    def _wire_poll(self) -> None:
        """What is being generated, each second and when a page opens; kept in the server, so that a reload finds it."""
        shared, rows = self.context.shared, self.generating.rows
        follow = self.context.follow
        outputs = [self.progress, self.queue, self.gallery, self.generating.cancel]
        seen = gr.State("")
        follow("generate", self._stamp, self._poll, [seen], [seen, *outputs])
        self.generating.cancel.click(handler(self._cancel), [seen], None, **QUEUED)
        seen = gr.State("")
        follow("mix", self._stamp, self._poll_for_mix, [seen], [seen, shared["mix.progress"], shared["mix.sheet"]])
        for tab in ("mix", "generate"):
            follow(tab, lambda: self.services.active.now()[1], rows.follow, [rows.revision], rows.outputs)
        # Whatever tab is in view, even if it shows no images, a training gets the worker's memory back.
        self.services.news.always.append(lambda: self.services.images.yield_to_training())
        self.services.news.always.append(self._keep_unfinished)

    def _keep_unfinished(self) -> None:
        """Requests live as long as the server: the next one tells of those that it never got to."""
        if not view.is_anothers(self.services.state.get(_UNFINISHED)):
            self.services.state.set(_UNFINISHED, view.unfinished(self.services.images.requests()))

    def _stamp(self) -> str:
        """Changes when something that is shown of requests would."""
        images = self.services.images
        request = images.current()
        return "" if request is None else _stamp(request, len(images.requests()))

    def _poll(self, seen: str) -> Any:
        """How the newest request stands, and its pictures."""
        images = self.services.images
        request, now = images.current(), self._stamp()
        if request is None or now == seen:
            return gr.skip()
        requests = images.requests()
        # Tiles are sent only when a picture came: with each step they would be drawn, and scrolled, anew.
        is_new = _pictures_part(now) != _pictures_part(seen)
        return [
            now,
            view.progress(request, sum(not other.is_over for other in requests if other.id != request.id)),
            view.requests(requests),
            tiles("Result", view.tiles(request, self.context.workspace.thumbnails)) if is_new else gr.skip(),
            gr.Button(visible=not request.is_over, interactive=not request.is_ending),
        ]

    def _cancel(self, seen: str) -> None:
        """Take back the request that the page shows; the next one may be under way by now."""
        images, number = self.services.images, int(seen.partition("/")[0] or 0)
        request = next((one for one in images.requests() if one.id == number), None)
        if request is None or request.is_over:
            gr.Info("This request was over already.", duration=4)
        images.cancel(number)

    def _poll_for_mix(self, seen: str) -> Any:
        """How a comparison or sweep stands, beside the buttons that ask for it."""
        request, now = self.services.images.current(), self._stamp()
        if request is None or now == seen:
            return gr.skip()
        sheet = picture(request.sheet, f"Sheet of {request.title}")
        return [now, view.progress(request) if request.is_grid else "", sheet]

    # ---- handlers

    def _history_page(self, text: str, number: float) -> Page[HistoryImage]:
        return page_of(self.services.history.images(text or ""), number, PAGE_IMAGES)

    def _show_history(self, text: str, number: float) -> tuple[Any, ...]:
        page = self._history_page(text, number)
        thumbnails = self.context.workspace.thumbnails
        shown = [
            Tile(str(image.path), thumbnail(image.path, thumbnails), image.path.stem, image.prompt[:_CAPTION])
            for image in page.items
        ]
        nothing = "Nothing fits. Search for less." if text else "No images yet. Press Generate."
        words = found(count(page.num_items, "image")) if page.num_items else empty(nothing)
        pages = gr.Slider(maximum=max(2, page.num_pages), value=page.number, visible=page.num_pages > 1)
        return tiles("History", shown), words, pages, gr.Button(interactive=bool(page.num_items))

    def _select(self, event: gr.EventData) -> dict[Any, Any]:
        """The pressed picture, by its path: the lists may have changed since they were shown."""
        path = Path(str(event.pressed["tile"]))
        # The path comes from the browser: no file outside of the outputs is read for it.
        if not path.resolve().is_relative_to(self.context.workspace.outputs.resolve()) or not path.is_file():
            raise DataError(f"{path.name} is not among the images any more.")
        return self._selected(path)

    def _select_dropped(self, path: str | None) -> dict[Any, Any]:
        return self._selected(Path(path)) if path else {self.selected: "", self.notes: ""}

    def _selected(self, path: Path) -> dict[Any, Any]:
        """The picture and its settings as text."""
        try:
            text = read_image_text(path)
        except DataError as error:
            text = str(error)
        shown = picture(path, "The chosen picture")
        return {
            self.selected: str(path),
            self.selected_panel: gr.Column(visible=True),
            self.picture: shown,
            self.text: text or "This picture carries no settings.",
            self.notes: "",
        }

    def _restorer(self, with_seed: bool) -> Any:
        def use(path: str | None) -> dict[Any, Any]:
            if not path:
                raise DataError("Choose a picture first.")
            return self._restore(Path(path), with_seed=with_seed)

        return use

    def _restore(self, path: Path, *, with_seed: bool) -> dict[Any, Any]:
        """Fill the form, the rows and the start image from a picture; list what could not be taken over."""
        generating, services = self.generating, self.services
        services.scan()  # for the rows' text, which follows
        told = restore_image(path, services.adapter_folders, services.models(), with_seed=with_seed)
        everything = generating.form.show(told.config)
        updates = generating.show({name: everything[name] for name in told.names if name in everything})
        rows, others = only_taggable(from_used(told.adapters), services.adapters)
        updates |= generating.use_rows(rows)
        differs = dict.fromkeys([*told.notes, *others])  # one file may be used twice
        updates[self.notes] = notes(list(differs), "Other than in the picture") or notes(
            ["Everything was taken over."], path.name
        )
        return updates | generating.start.use(told.start_image)

    def _send(self, path: str | None) -> dict[Any, Any]:
        if not path:
            raise DataError("Choose a picture first.")
        if not Path(path).is_file():
            raise DataError(f"{Path(path).name} is not among the images any more.")
        gr.Info("It is the start image now. Paint over it to generate only a part anew.", duration=5)
        start = self.generating.start
        return {**start.use(Path(path)), start.panel: gr.Accordion(open=True)}

    def _delete(self, path: str | None, text: str, number: float) -> dict[Any, Any]:
        chosen = Path(path) if path else None
        # The path comes from the browser: `outputs/../x` lies elsewhere.
        if chosen is None or not chosen.resolve().is_relative_to(self.context.workspace.outputs.resolve()):
            raise DataError("Only images of this workspace's outputs can be deleted.")
        updates: dict[Any, Any] = {
            **dict.fromkeys((self.selected, self.picture, self.text, self.notes), ""),
            self.selected_panel: gr.Column(visible=False),
        }
        with self._deleting:
            # Deleted elsewhere before: what can be taken back is that deletion still.
            if deleted := move_to_trash([chosen], self.context.workspace.trash):
                self._deleted = deleted
                gr.Info(f"{chosen.name} is in the trash.", duration=4)
            else:
                updates[self.problems] = panel([f"{chosen.name} is not among the images any more."])
            updates[self.undo] = gr.Button(visible=bool(self._deleted))
        return updates | self._listed(text, number)

    def _undo(self, text: str, number: float) -> dict[Any, Any]:
        with self._deleting:
            came_back = put_back(self._deleted)
            self._deleted = []
        updates = {self.undo: gr.Button(visible=False), **self._listed(text, number)}
        if came_back:
            return updates
        words = "Nothing came back: it was taken back already, or the trash was emptied since."
        return {**updates, self.problems: panel([words])}

    def _listed(self, text: str, number: float) -> dict[Any, Any]:
        listed = (self.history, self.found, self.page, self.zip)
        return dict(zip(listed, self._show_history(text, number), strict=True))

    def _zip(self, text: str) -> Path:
        images = [image.path for image in self.services.history.images(text or "")]
        if not images:
            raise DataError("There are no images to put into a zip.")
        name = f"sdlora-{time.strftime('%Y%m%d-%H%M%S')}.zip"
        return write_zip(images, self.context.workspace.exports / name)


def _stamp(request: ImageRequest, num_requests: int) -> str:
    """Changes when something on the page would."""
    pictures = f"{request.id}/{len(request.images)}/{request.sheet}"
    return f"{pictures}|{request.status}/{request.is_ending}/{request.step}/{request.previews_made}/{num_requests}"


def _pictures_part(stamp: str) -> str:
    return stamp.partition("|")[0]
