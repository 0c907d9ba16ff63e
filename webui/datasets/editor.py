"""One image of a dataset, large, with what training cuts off, and its caption, saved as it is typed."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.sets import folders, listing
from sdlora.data.sets.listing import Item
from sdlora.data.thumbnails import large_picture
from sdlora.errors import DataError
from webui.context import LAST_COUNTS, PRIVATE, QUICK, Context, handler
from webui.datasets import view
from webui.datasets.mask import MaskPanel
from webui.datasets.typed import NUMBERED, Typed, place_of
from webui.layout import hidden_text, live_html, problems_html, small_button
from webui.problems import shown_in
from webui.scripts import LIVE, MARKS, SAVED, WRITTEN
from webui.train.remembered import default_caption

RESOLUTIONS = (256, 320, 384, 512, 640, 768, 1024)
DEFAULT_RESOLUTION = 512


class Editor:
    """Made inside the browser's layout, which moves it from image to image with `edit`.

    Which image of which dataset it holds lies in the page beside the box (see `typed`), not on the server, nor in the
    list of datasets, where another may be chosen by then.
    """

    def __init__(self, context: Context, chosen: gr.Dropdown, summary: gr.HTML) -> None:
        """summary: counts captions, so a first or a last word changes it."""
        self.context = context
        self.summary = summary
        self.chosen = chosen
        self.own = gr.State({})  # by image, what this page wrote last
        self._readings, self._answers = count(1), count(1)
        self._saving = threading.Lock()
        self._lay_out()
        self._wire()

    def _lay_out(self) -> None:
        with gr.Column(elem_classes="off-page"):
            self.editing = hidden_text("dataset-editing", "Dataset and image in the editor")
            self.loaded = hidden_text("dataset-loaded", "Image and caption as they were read")
            self.number = hidden_text("dataset-typed", "Number of what was typed")
            self.answer = hidden_text("dataset-written", "What was written")
        self.picture = gr.HTML("", elem_id="dataset-picture")
        with gr.Row(elem_classes="bar pager"):
            self.previous = small_button("← Previous", "dataset-previous", 90)
            self.place = live_html("dataset-place", js_on_load=LIVE + MARKS)
            self.next = small_button("Next →", "dataset-next", 90)
        self.caption = gr.Textbox(
            label="Caption",
            info="Saved as you type. Tags are parted by commas.",
            elem_id="dataset-caption",
            lines=4,
            max_lines=14,
            placeholder="What is in the picture?",
        )
        self.tokens = gr.HTML("", elem_id="dataset-tokens", js_on_load=SAVED)
        self.problems = problems_html("dataset-caption-said", elem_classes="bare")
        with gr.Row(elem_classes="bar"):
            self.save = small_button("Save", "dataset-save", 80)
            self.delete = small_button("Delete image", "dataset-delete-image", 110)
            self.resolution = gr.Dropdown(
                RESOLUTIONS,
                value=DEFAULT_RESOLUTION,
                label="Resolution (px)",
                filterable=False,
                info="For the window of what is trained.",
                elem_id="dataset-resolution",
                min_width=150,
            )
        self.context.remember("dataset.resolution", self.resolution)
        self.mask = MaskPanel(self.context, self.chosen, self.editing)

    @property
    def views(self) -> list[Any]:
        """What `edit` returns updates for."""
        return [self.editing, self.picture, self.place, self.caption, self.tokens, self.loaded, self.problems]

    @property
    def written(self) -> list[Any]:
        """The inputs of `Typed.of`: image and caption as they were read, the box, what this page has written."""
        return [self.loaded, self.caption, self.own, self.number]

    def _wire(self) -> None:
        said = [self.answer, self.problems]
        written = shown_in(self.problems, self._write)
        self.caption.input(written, self.written, said, js=NUMBERED, **LAST_COUNTS)
        self.save.click(written, self.written, said, js=NUMBERED, **QUICK)
        # By the time of the answer another image may be in the editor, or another dataset.
        shown = [self.tokens, self.summary]
        self.answer.change(None, [self.answer, self.editing], shown, js=WRITTEN, **PRIVATE)
        settled = [self.caption, self.tokens, self.loaded, self.problems]
        self.tokens.select(shown_in(self.problems, self._settle), self.written, settled, js=NUMBERED, **QUICK)
        self.resolution.input(handler(self._redraw), [self.editing, self.resolution], self.picture, **LAST_COUNTS)

    def edit(self, folder: Path | None, items: Sequence[Item], at: int) -> dict[Any, Any]:
        """Show one of the items of a dataset; an empty editor when there is none."""
        if not items or folder is None:
            return dict.fromkeys(self.views, "")
        item = items[at]
        return {
            self.editing: place_of(folder, item.name),
            self.picture: self.drawn(item),
            self.place: view.place(item, at, len(items)),
            self.caption: item.caption,
            self.tokens: view.tokens(item, default_caption(self.context.state), saved=False),
            self.loaded: self._read(place_of(folder, item.name), item.caption),
            self.problems: "",
        }

    def keep(self, typed: Typed) -> str | None:
        """Before another image comes: write what was typed last, and leave alone what was not typed here.

        Returns the caption of somebody else who changed it meanwhile: then the image stays, and `asking` asks.
        """
        # An image that was deleted meanwhile takes its caption along: there is nothing left to keep.
        if not typed.is_unsaved or not (self.context.workspace.datasets / typed.place).is_file():
            return None
        return self._save(typed)

    def asking(self, theirs: str) -> dict[Any, Any]:
        """Whose caption it is to be, asked below the box."""
        return {self.tokens: view.changed_meanwhile(theirs)}

    def staying(self, updates: dict[Any, Any], theirs: str | None = None) -> dict[Any, Any]:
        """Updates without those that would take the image and its text away. theirs: asks whose it is to have."""
        views = set(self.views)
        left = {shown: to for shown, to in updates.items() if shown not in views}
        return left if theirs is None else left | self.asking(theirs)

    def drawn(self, item: Item, resolution: int | None = None) -> str:
        """The picture with its mask and what training cuts off."""
        picture = large_picture(item.path, item.mask, self.context.workspace.thumbnails)
        return view.crop(item, picture, int(resolution or self.kept_resolution))

    @property
    def kept_resolution(self) -> int:
        """The resolution chosen last."""
        return int(self.context.state.get("dataset.resolution", DEFAULT_RESOLUTION))

    def _read(self, place: str, caption: str) -> str:
        return json.dumps((place, caption, next(self._readings)))

    def _save(self, typed: Typed) -> str | None:
        """Write the caption; where somebody else has changed it, return their text instead."""
        # One at a time: the next save, a key later, must know this text as this page's own.
        with self._saving:
            folder = self._folder(typed.dataset)
            image = folder / typed.image
            if typed.is_overtaken:
                return listing.caption_of(image, folder) if typed.last.is_refused else None
            theirs = listing.save_caption(image, folder, typed.caption, {typed.last.caption})
            if theirs is None:
                typed.wrote(typed.caption)
            else:
                typed.wrote(typed.last.caption, is_refused=True)
            return theirs

    def _folder(self, name: str | None) -> Path:
        return folders.folder_of(self.context.workspace.datasets, name)

    def _image(self, typed: Typed) -> tuple[Path, Path]:
        """Dataset and file. Raises DataError where that is gone."""
        try:
            folder = self._folder(typed.dataset)
        except DataError as error:
            raise DataError(f"{error} The caption of {typed.image} was not saved.") from None
        if not (folder / typed.image).is_file():
            raise DataError(f"{typed.image} is not in the dataset any more, so its caption was not saved.")
        return folder, folder / typed.image

    def _write(self, *written: Any) -> dict[Any, Any]:
        """Save what the box holds for the image that it holds it for, or show whose caption differs."""
        typed = Typed.of(*written)
        if not typed.place:
            return {}
        folder, image = self._image(typed)
        had_words = bool(listing.caption_of(image, folder))
        answer: dict[str, Any] = {"of": typed.place, "number": next(self._answers)}
        if (theirs := self._save(typed)) is not None:
            answer["tokens"] = view.changed_meanwhile(theirs)
        elif not typed.is_overtaken:
            answer["tokens"] = self._saved(folder, typed.image, typed.caption)
            # Of thousands of images the list takes a while, so it is read only when a count changes.
            if had_words != bool(typed.caption.strip()):
                answer["summary"] = view.summary_of(listing.read(folder))
        return {self.answer: json.dumps(answer)}

    def _settle(self, event: gr.EventData, *written: Any) -> dict[Any, Any]:
        """Whose caption it is to be, where two pages have written one."""
        typed = Typed.of(*written)
        folder, image = self._image(typed)
        caption = typed.caption
        if event.pressed["act"] == "mine":
            listing.write_caption(image, caption)
        else:
            caption = listing.caption_of(image, folder)
        read = self._read(typed.place, caption)
        Typed.of(read, caption, typed.own, str(typed.number)).wrote(caption)
        return {self.caption: caption, self.tokens: self._saved(folder, typed.image, caption), self.loaded: read}

    def _saved(self, folder: Path, image: str, caption: str) -> str:
        """What stands below a caption that is on the disk."""
        item = listing.captioned(folder / image, folder, caption)
        return view.saved(item, default_caption(self.context.state))

    def _redraw(self, editing: str, resolution: int) -> str:
        dataset, _, image = editing.partition("/")
        items = listing.read(self._folder(dataset)) if dataset else []
        at = listing.position(items, image)
        return "" if at is None else self.drawn(items[at], resolution)
