"""The images of the chosen dataset: filter, pages of thumbnails, and the way from image to image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.sets import folders, history, listing
from sdlora.data.sets.listing import Filter, Item
from sdlora.data.thumbnails import make_thumbnails
from sdlora.errors import DataError
from sdlora.words import count
from webui.context import EACH_COUNTS, LAST_COUNTS, PRIVATE, QUICK, Context, confirm, handler
from webui.datasets import view
from webui.datasets.editor import Editor
from webui.datasets.typed import NUMBERED, Typed, place_of
from webui.layout import hidden_text, problems_html, small_button, tiles_html
from webui.paging import page_of
from webui.pieces import Tile, tiles
from webui.problems import panel, shown_in
from webui.scripts import PRESSES

TAGS_SHOWN = 60
IMAGES_A_PAGE = 72


class Browser:
    """Made inside the tab's layout. `views` are what `opened`, `refreshed` and `shown_image` return updates for."""

    def __init__(self, context: Context, chosen: gr.Dropdown) -> None:
        self.context = context
        self.chosen = chosen
        self.number = gr.State(1)
        self.applied = gr.State(None)  # the filter that the page's images have passed
        self._lay_out()
        self._wire()

    def _lay_out(self) -> None:
        with gr.Column(visible=False, elem_id="dataset-browser") as self.column:
            with gr.Row(elem_classes="bar"):
                self.summary = gr.HTML("", elem_id="dataset-summary", js_on_load=PRESSES)
                self.undo = small_button("Undo", "dataset-undo", 150, interactive=False)
                with gr.Column(elem_classes="off-page"):
                    self.undoes = hidden_text("dataset-undoes", "The change that Undo takes back")
            self.problems = problems_html("dataset-problems", elem_classes="bare")
            with gr.Row(elem_classes="page-columns"):
                with gr.Column():
                    self._lay_out_filter()
                    self._lay_out_pages()
                with gr.Column(elem_id="dataset-editor"):
                    self.editor = Editor(self.context, self.chosen, self.summary)

    def _lay_out_filter(self) -> None:
        with gr.Row():
            self.text = gr.Textbox(
                label="Find",
                info="Words of the caption or file name.",
                elem_id="dataset-find",
                max_lines=1,
                min_width=160,
            )
            self.kind = gr.Dropdown(
                list(listing.KINDS),
                value="all",
                label="Show",
                info="Which images.",
                elem_id="dataset-kind",
                filterable=False,
                min_width=140,
            )
        with gr.Accordion("Tags", open=False, elem_id="dataset-tags-box") as self.tags_box:
            self.tags = gr.CheckboxGroup(
                [],
                label="With all of these tags",
                info="The most frequent ones, with their counts.",
                elem_id="dataset-tags",
            )

    def _lay_out_pages(self) -> None:
        self.gallery = tiles_html("dataset-gallery")
        self.nothing = gr.HTML("", js_on_load=PRESSES, visible=False, elem_id="dataset-nothing")
        with gr.Row(elem_classes="bar pager"):
            self.page_back = small_button("Previous page", "dataset-page-back", 110)
            self.pager = gr.HTML("", elem_id="dataset-pager")
            self.page_on = small_button("Next page", "dataset-page-on", 110)

    @property
    def views(self) -> list[Any]:
        """Everything that changes with the dataset."""
        facts = [self.column, self.summary, self.undo, self.undoes, self.text, self.kind, self.tags, self.tags_box]
        return [*facts, self.problems, *self._list, *self.editor.views]

    @property
    def _list(self) -> list[Any]:
        return [self.gallery, self.nothing, self.pager, self.page_back, self.page_on, self.number, self.applied]

    @property
    def filter(self) -> list[Any]:
        """The inputs that `as_filter` reads."""
        return [self.text, self.kind, self.tags]

    @property
    def around(self) -> list[Any]:
        """The inputs of `refreshed`, without the folder: what is in the editor, filter and page."""
        return [*self.editor.written, *self.filter, self.number]

    def _wire(self) -> None:
        editor, looked_at = self.editor, [*self._list, *self.editor.views, self.problems]

        def shown(act: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
            return shown_in(self.problems, act)

        filtered = [*editor.written, self.chosen, *self.filter]
        numbered: dict[str, Any] = {"js": NUMBERED}
        for trigger in (self.text.input, self.kind.input, self.tags.input):
            trigger(shown(self._filtered), [*filtered, self.applied], looked_at, **numbered, **LAST_COUNTS)
        begun = [*editor.written, self.chosen]
        self.nothing.select(shown(self._unfiltered), begun, self.views, **numbered, **QUICK)
        outputs = [self.kind, self.text, self.tags, *looked_at]
        self.summary.select(shown(self._only), begun, outputs, **numbered, **EACH_COUNTS)
        turned = [*editor.views, self.problems]
        self.gallery.select(shown(self._select), filtered, turned, **numbered, **EACH_COUNTS)
        for step, turn, move in ((-1, self.page_back, editor.previous), (1, self.page_on, editor.next)):
            turn.click(handler(self._turn(step)), [self.chosen, *self.filter, self.number], self._list, **QUICK)
            move.click(shown(self._step(step)), [*filtered, self.number], looked_at, **numbered, **QUICK)
        undone = self.undo.click(shown(self._undo), [self.chosen, self.undoes, *self.around], self.views, **PRIVATE)
        editor.mask.wire(self.views, self.refreshed, self.around)
        editor.mask.follow(undone.then)
        question = confirm("Delete {#dataset-image}? Undo brings it back.")
        deleted = editor.delete.click(
            shown(self._delete), [self.chosen, *self.around], self.views, js=question, **QUICK
        )
        self.changes_images = (undone, deleted)
        """Events after which other images are there."""

    # What the tab and its panels ask for

    def opened(self, folder: Path | None, items: Sequence[Item]) -> dict[Any, Any]:
        """A dataset from its first page and image on, without a filter."""
        return self._from_the_start(folder, items, 0)

    def shown_image(self, folder: Path, name: str) -> dict[Any, Any]:
        """One image in the editor and the page it is on, without a filter. Raises DataError when it is gone."""
        items = listing.read(folder)
        at = listing.position(items, name)
        if at is None:
            raise DataError(f"{name} is not in the dataset any more.")
        return self._from_the_start(folder, items, at)

    def refreshed(self, folder: Path, *around: Any) -> dict[Any, Any]:
        """The same page and image after the files have changed; a text that is not saved yet stays in its box."""
        *written, text, kind, tags, number = around
        typed, items = Typed.of(*written), listing.read(folder)
        image = typed.image_in(folder)
        updates, at = self._anew(folder, image, text, kind, tags, number), listing.position(items, image)
        if at is None or not typed.is_unsaved:
            return updates
        return self.editor.staying(updates) | {self.editor.picture: self.editor.drawn(items[at])}

    # Handlers

    def _folder(self, name: str | None) -> Path:
        return folders.folder_of(self.context.workspace.datasets, name)

    def _unfiltered(self, *given: Any) -> dict[Any, Any]:
        *written, name = given
        folder = self._folder(name)
        theirs = self.editor.keep(Typed.of(*written))
        updates = self.opened(folder, listing.read(folder))
        return updates if theirs is None else self.editor.staying(updates, theirs)

    def _filtered(self, *given: Any) -> dict[Any, Any]:
        """The images of another filter from the first on. A list that was opened and left is no other filter."""
        *written, name, text, kind, tags, applied = given
        wanted = as_filter(text, kind, tags)
        if (name, wanted) == applied:
            return {self.applied: gr.skip()}
        theirs = self.editor.keep(Typed.of(*written))
        folder = self._folder(name)
        found = self._passing(listing.read(folder), text, kind, tags)
        listed = self._page(found, 1, found[0].name if found else None)
        updates = listed | self.editor.edit(folder, found, 0) | {self.applied: (name, wanted)}
        return updates if theirs is None else self.editor.staying(updates, theirs)

    def _only(self, event: gr.EventData, *given: Any) -> dict[Any, Any]:
        """The images that a count of the summary is about."""
        kind = event.pressed["kind"]
        return {self.kind: kind, self.text: "", self.tags: [], **self._filtered(*given, "", kind, [], None)}

    def _turn(self, step: int) -> Callable[..., dict[Any, Any]]:
        def turn(name: str, text: str, kind: str, tags: list[str], number: int) -> dict[Any, Any]:
            found = self._passing(listing.read(self._folder(name)), text, kind, tags)
            return self._page(found, number + step, None)

        return turn

    def _select(self, event: gr.EventData, *given: Any) -> dict[Any, Any]:
        *written, name, text, kind, tags = given
        if (theirs := self.editor.keep(Typed.of(*written))) is not None:
            return self.editor.asking(theirs)
        folder, wanted = self._folder(name), str(event.pressed["tile"])
        items = listing.read(folder)
        if listing.position(items, wanted) is None:
            raise DataError(f"{wanted} is not in the dataset any more.")
        return self._edited(folder, items, self._passing(items, text, kind, tags), wanted)

    def _step(self, step: int) -> Callable[..., dict[Any, Any]]:
        def move(*given: Any) -> dict[Any, Any]:
            *written, name, text, kind, tags, number = given
            typed = Typed.of(*written)
            if (theirs := self.editor.keep(typed)) is not None:
                return self.editor.asking(theirs)
            folder = self._folder(name)
            found = self._passing(listing.read(folder), text, kind, tags)
            if not found:
                return self._page(found, 1, None) | self.editor.edit(folder, found, 0)
            at = listing.neighbour(found, typed.image_in(folder), step)
            # The tiles of this page stand already: only the editor moves on.
            page = page_of(found, None, IMAGES_A_PAGE, at).number
            if page == number:
                moved: dict[Any, Any] = {self.number: number}
            else:
                moved = self._page(found, page, found[at].name)
            return moved | self.editor.edit(folder, found, at)

        return move

    def _undo(self, name: str, undoes: str, *around: Any) -> dict[Any, Any]:
        folder = self._folder(name)
        change = history.last_change(folder)
        if change is None or place_of(folder, change.batch) != undoes:  # another window was at work here
            words = "This dataset was changed elsewhere meanwhile: look at what Undo would take back, then press again."
            return {**self.refreshed(folder, *around), self.problems: panel([words])}
        gr.Info(f"Taken back: {count(history.undo_last(folder), 'file')}.")
        return self.refreshed(folder, *around)

    def _delete(self, name: str, *around: Any) -> dict[Any, Any]:
        """The image in the editor, whether or not the filter lets it pass, out of the dataset that it is in."""
        *written, text, kind, tags, number = around
        typed = Typed.of(*written)
        folder = self._folder(typed.dataset or name)
        items = listing.read(folder)
        at = listing.position(items, typed.image)
        if at is None:
            raise DataError(f"{typed.image} is not in the dataset any more." if typed.image else "No image is chosen.")
        found = self._passing(items, text, kind, tags)
        # The image after the deleted one takes its place in the editor, at the end of the list the one before.
        after = found[listing.neighbour(found, typed.image, 1)].name if found else ""
        if after in ("", typed.image):
            after = found[listing.neighbour(found, typed.image, -1)].name if found else ""
        history.delete_image(folder, items[at])
        if folder.name != name:  # another dataset is about to be shown
            return {self.problems: ""}
        return self._anew(folder, after, text, kind, tags, number)

    # Pieces of updates

    def _anew(self, folder: Path, image: str, text: str, kind: str, tags: list[str], number: int) -> dict[Any, Any]:
        items = listing.read(folder)
        found = self._passing(items, text, kind, tags)
        updates = self._facts(folder, items, tags) | self._page(found, number, image)
        return updates | self._edited(folder, items, found, image)

    def _edited(self, folder: Path, items: Sequence[Item], found: Sequence[Item], name: str) -> dict[Any, Any]:
        """An image in the editor, also one that the filter doesn't let pass any more; the first where it is gone."""
        among = found
        if listing.position(found, name) is None and listing.position(items, name) is not None:
            among = items
        return self.editor.edit(folder, among, listing.position(among, name) or 0)

    def _passing(self, items: Sequence[Item], text: str, kind: str, tags: Sequence[str]) -> Sequence[Item]:
        wanted = as_filter(text, kind, tags)
        return items if wanted.is_empty else [item for item in items if wanted.passes(item)]

    def _from_the_start(self, folder: Path | None, items: Sequence[Item], at: int) -> dict[Any, Any]:
        name = items[at].name if items else ""
        listed = self._page(items, page_of(items, None, IMAGES_A_PAGE, at).number, name)
        return {
            self.text: "",
            self.kind: "all",
            self.problems: "",
            self.applied: (folder.name if folder else None, Filter()),
            **self._facts(folder, items, ()),
            **listed,
            **self.editor.edit(folder, items, at),
        }

    def _facts(self, folder: Path | None, items: Sequence[Item], chosen_tags: Sequence[str]) -> dict[Any, Any]:
        counts = listing.tag_counts(items)
        choices = [(f"{tag} ({number})", tag) for tag, number in counts[:TAGS_SHOWN]]
        offered = {tag for _, tag in choices}
        change = history.last_change(folder) if folder else None
        return {
            self.column: gr.Column(visible=bool(items)),
            self.summary: view.summary(items, len(counts)),
            self.undo: gr.Button(change.words if change else "Nothing to undo", interactive=change is not None),
            self.undoes: place_of(folder, change.batch) if folder and change else "",
            self.tags: gr.CheckboxGroup(choices=choices, value=[tag for tag in chosen_tags if tag in offered]),
            self.tags_box: gr.Accordion(f"Tags ({len(counts)})"),
        }

    def _page(self, items: Sequence[Item], number: int, selected: str | None) -> dict[Any, Any]:
        page = page_of(items, number, IMAGES_A_PAGE)
        kept = self.context.workspace.thumbnails
        pictures = make_thumbnails([item.path for item in page.items], kept)
        shown = [
            Tile(item.name, picture, item.name, *view.line(item))
            for picture, item in zip(pictures, page.items, strict=True)
        ]
        return {
            self.gallery: tiles("Images", shown, selected),
            self.nothing: gr.HTML(view.nothing_found(), visible=not shown),
            self.pager: view.pager(page.number, page.num_pages, count(page.num_items, "image")),
            self.page_back: gr.Button(interactive=page.number > 1),
            self.page_on: gr.Button(interactive=page.number < page.num_pages),
            self.number: page.number,
        }


def as_filter(text: str | None, kind: str | None, tags: Sequence[str] | None) -> Filter:
    """The filter that the inputs stand for."""
    known: listing.Kind = next((each for each in listing.KINDS if each == kind), "all")
    return Filter(text or "", known, tuple(tags or ()))
