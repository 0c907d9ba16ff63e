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
from webui.datasets.editor import Editor, Own
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
        """The inputs of `refreshed`, without the folder: filter, page and image."""
        return [*self.filter, self.number, self.editor.editing]

    def _wire(self) -> None:
        editor, looked_at = self.editor, [*self._list, *self.editor.views, self.problems]

        def shown(act: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
            return shown_in(self.problems, act)

        wanted = [self.chosen, *self.filter]
        for trigger in (self.text.input, self.kind.input, self.tags.input):
            trigger(shown(self._filtered), [*wanted, self.applied], looked_at, **LAST_COUNTS)
        self.nothing.select(shown(self._unfiltered), self.chosen, self.views, **QUICK)
        self.summary.select(
            shown(self._only), self.chosen, [self.kind, self.text, self.tags, *looked_at], **EACH_COUNTS
        )
        turned = [*editor.views, self.problems]
        self.gallery.select(shown(self._select), [*editor.written, *self.filter], turned, **EACH_COUNTS)
        for step, turn, move in ((-1, self.page_back, editor.previous), (1, self.page_on, editor.next)):
            turn.click(handler(self._turn(step)), [*wanted, self.number], self._list, **QUICK)
            move.click(shown(self._step(step)), [*editor.written, *self.filter, self.number], looked_at, **QUICK)
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

    def refreshed(
        self, folder: Path, text: str, kind: str, tags: list[str], number: int, editing: str
    ) -> dict[Any, Any]:
        """The same page and image after the files have changed."""
        found = self._passing(listing.read(folder), text, kind, tags)
        updates = self.relabelled(folder, text, kind, tags, number, editing)
        return updates | self.editor.edit(found, listing.position(found, editing) or 0)

    def relabelled(
        self, folder: Path, text: str, kind: str, tags: list[str], number: int, editing: str
    ) -> dict[Any, Any]:
        """The same page after captions have changed, the editor left alone."""
        items = listing.read(folder)
        return self._facts(folder, items, tags) | self._page(self._passing(items, text, kind, tags), number, editing)

    # Handlers

    def _folder(self, name: str | None) -> Path:
        return folders.folder_of(self.context.workspace.datasets, name)

    def _unfiltered(self, name: str) -> dict[Any, Any]:
        folder = self._folder(name)
        return self.opened(folder, listing.read(folder))

    def _filtered(
        self, name: str, text: str, kind: str, tags: list[str], applied: tuple[str, Filter] | None
    ) -> dict[Any, Any]:
        """The images of another filter from the first on. A list that was opened and left is no other filter."""
        if (name, as_filter(text, kind, tags)) == applied:
            return {self.applied: gr.skip()}
        found = self._found(name, text, kind, tags)
        listed = self._page(found, 1, found[0].name if found else None)
        return listed | self.editor.edit(found, 0) | {self.applied: (name, as_filter(text, kind, tags))}

    def _only(self, name: str, event: gr.EventData) -> dict[Any, Any]:
        """The images that a count of the summary is about."""
        kind = event.pressed["kind"]
        return {self.kind: kind, self.text: "", self.tags: [], **self._filtered(name, "", kind, [], None)}

    def _turn(self, step: int) -> Callable[..., dict[Any, Any]]:
        def turn(name: str, text: str, kind: str, tags: list[str], number: int) -> dict[Any, Any]:
            return self._page(self._found(name, text, kind, tags), number + step, None)

        return turn

    def _select(
        self,
        name: str,
        editing: str,
        caption: str,
        loaded: str,
        own: Own,
        text: str,
        kind: str,
        tags: list[str],
        event: gr.EventData,
    ) -> dict[Any, Any]:
        if (theirs := self.editor.keep(name, editing, caption, loaded, own)) is not None:
            return self.editor.asking(theirs)
        wanted = str(event.pressed["tile"])
        found = self._found(name, text, kind, tags)
        at = listing.position(found, wanted)
        if at is None:  # its caption was changed so that the filter no longer lets it pass
            found = listing.read(self._folder(name))
            at = listing.position(found, wanted)
        if at is None:
            raise DataError(f"{wanted} is not in the dataset any more.")
        return self.editor.edit(found, at)

    def _step(self, step: int) -> Callable[..., dict[Any, Any]]:
        def move(
            name: str,
            editing: str,
            caption: str,
            loaded: str,
            own: Own,
            text: str,
            kind: str,
            tags: list[str],
            number: int,
        ) -> dict[Any, Any]:
            if (theirs := self.editor.keep(name, editing, caption, loaded, own)) is not None:
                return self.editor.asking(theirs)
            found = self._found(name, text, kind, tags)
            if not found:
                return self._page(found, 1, None) | self.editor.edit(found, 0)
            at = listing.neighbour(found, editing, step)
            # The tiles of this page stand already: only the editor moves on.
            page = page_of(found, None, IMAGES_A_PAGE, at).number
            if page == number:
                moved: dict[Any, Any] = {self.number: number}
            else:
                moved = self._page(found, page, found[at].name)
            return moved | self.editor.edit(found, at)

        return move

    def _undo(self, name: str, undoes: str, *around: Any) -> dict[Any, Any]:
        folder = self._folder(name)
        change = history.last_change(folder)
        if change is None or change.batch != undoes:  # another window was at work here
            words = "This dataset was changed elsewhere meanwhile: look at what Undo would take back, then press again."
            return {**self.refreshed(folder, *around), self.problems: panel([words])}
        gr.Info(f"Taken back: {count(history.undo_last(folder), 'file')}.")
        return self.refreshed(folder, *around)

    def _delete(self, name: str, text: str, kind: str, tags: list[str], number: int, editing: str) -> dict[Any, Any]:
        folder = self._folder(name)
        before = self._found(name, text, kind, tags)
        at = listing.position(before, editing)
        if at is None:
            raise DataError("No image is chosen.")
        # The image after the deleted one takes its place in the editor, at the end of the list the one before.
        following = before[at + 1 : at + 2] or before[at - 1 : at]
        history.delete_image(folder, before[at])
        return self.refreshed(folder, text, kind, tags, number, following[0].name if following else "")

    # Pieces of updates

    def _found(self, name: str | None, text: str, kind: str, tags: Sequence[str]) -> Sequence[Item]:
        return self._passing(listing.read(self._folder(name)), text, kind, tags)

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
            **self.editor.edit(items, at),
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
            self.undoes: change.batch if change else "",
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
