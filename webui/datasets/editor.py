"""One image of a dataset, large, with what training cuts off, and its caption, saved as it is typed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.sets import folders, listing
from sdlora.data.sets.listing import Item
from sdlora.data.thumbnails import large_picture
from sdlora.errors import DataError
from webui.context import LAST_COUNTS, QUICK, Context, handler
from webui.datasets import view
from webui.datasets.mask import MaskPanel
from webui.layout import hidden_text, live_html, problems_html, small_button
from webui.problems import shown_in
from webui.scripts import LIVE, MARKS, SAVED
from webui.train.remembered import default_caption

RESOLUTIONS = (256, 320, 384, 512, 640, 768, 1024)
DEFAULT_RESOLUTION = 512
Own = dict[str, set[str]]
"""By image, the captions that one page has written."""


class Editor:
    """Made inside the browser's layout, which moves it from image to image with `edit`.

    The name of the image lies in the page beside the box (`editing`), not on the server: both reach a handler as one,
    so a caption is never written to the image that came after it.
    """

    def __init__(self, context: Context, chosen: gr.Dropdown, summary: gr.HTML) -> None:
        """summary: counts captions, so a first or a last word changes it."""
        self.context = context
        self.summary = summary
        self.chosen = chosen
        self.own = gr.State({})  # by image, the captions that this page has written
        self._lay_out()
        self._wire()

    def _lay_out(self) -> None:
        with gr.Column(elem_classes="off-page"):
            self.editing = hidden_text("dataset-editing", "Image in the editor")
            self.loaded = hidden_text("dataset-loaded", "Image and caption as they were read")
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
        """The inputs of `keep`: dataset, image, caption, how that was loaded, and what this page has written."""
        return [self.chosen, self.editing, self.caption, self.loaded, self.own]

    def _wire(self) -> None:
        said = [self.tokens, self.summary, self.problems]
        written = shown_in(self.problems, self._write)
        self.caption.input(written, self.written, said, **LAST_COUNTS)
        self.save.click(written, self.written, said, **QUICK)
        settled = [self.caption, self.tokens, self.loaded, self.problems]
        self.tokens.select(shown_in(self.problems, self._settle), self.written, settled, **QUICK)
        self.resolution.input(
            handler(self._redraw), [self.chosen, self.editing, self.resolution], self.picture, **LAST_COUNTS
        )

    def edit(self, items: Sequence[Item], at: int, resolution: int | None = None) -> dict[Any, Any]:
        """Show one of the items; an empty editor when there is none."""
        if not items:
            return dict.fromkeys(self.views, "")
        item = items[at]
        return {
            self.editing: item.name,
            self.picture: self._picture(item, resolution or self.kept_resolution),
            self.place: view.place(item, at, len(items)),
            self.caption: item.caption,
            self.tokens: view.tokens(item, default_caption(self.context.state), saved=False),
            self.loaded: json.dumps((item.name, item.caption)),
            self.problems: "",
        }

    def keep(self, name: str, editing: str, caption: str, loaded: str, own: Own) -> str | None:
        """Before another image comes: write what was typed last, and leave alone what was not typed here.

        Returns the caption of somebody else who changed it meanwhile: then the image stays, and `asking` asks.
        """
        # An image that was deleted meanwhile takes its caption along: there is nothing left to keep.
        if not editing or not (self._folder(name) / editing).is_file():
            return None
        return self._save(name, editing, caption, loaded, own)

    def asking(self, theirs: str) -> dict[Any, Any]:
        """Whose caption it is to be, asked below the box."""
        return {self.tokens: view.changed_meanwhile(theirs)}

    def is_typed(self, editing: str, caption: str, loaded: str, own: Own) -> bool:
        """Whether the box holds something that was neither read nor written yet."""
        return caption not in _known(editing, loaded, own)

    def _save(self, name: str, editing: str, caption: str, loaded: str, own: Own) -> str | None:
        """Write the caption if it was typed here; where somebody else has changed it, their text instead."""
        # As it was read, and nothing that this page wrote since lies on the disk: nobody typed here.
        if [editing, caption] == json.loads(loaded or "[]") and editing not in own:
            return None
        folder, known = self._folder(name), _known(editing, loaded, own)
        # Noted before it is written: the next save, a key later, must know this text as this page's own.
        own.setdefault(editing, set()).add(caption)
        theirs = listing.save_caption(folder / editing, folder, caption, known)
        if theirs is not None:
            own[editing].discard(caption)
        return theirs

    @property
    def kept_resolution(self) -> int:
        """The resolution chosen last."""
        return int(self.context.state.get("dataset.resolution", DEFAULT_RESOLUTION))

    def _folder(self, name: str | None) -> Path:
        return folders.folder_of(self.context.workspace.datasets, name)

    def _write(self, name: str, editing: str, caption: str, loaded: str, own: Own) -> dict[Any, Any]:
        """Save what the box holds for the image that it holds it for, or show whose caption differs."""
        if not editing:
            return {}
        folder = self._folder(name)
        if not (folder / editing).is_file():
            raise DataError(f"{editing} is not in the dataset any more, so its caption was not saved.")
        had_words = bool(listing.caption_of(folder / editing, folder))
        theirs = self._save(name, editing, caption, loaded, own)
        if theirs is not None:
            return self.asking(theirs)
        saved = {self.tokens: self._saved(folder, editing, caption)}
        # Of thousands of images the list takes a while, so it is read only when a count changes.
        is_counted = had_words == bool(caption.strip())
        return saved if is_counted else {**saved, self.summary: view.summary_of(listing.read(folder))}

    def _settle(
        self, name: str, editing: str, caption: str, loaded: str, own: Own, event: gr.EventData
    ) -> dict[Any, Any]:
        """Whose caption it is to be, where two pages have written one."""
        folder = self._folder(name)
        image = folder / editing
        if event.pressed["act"] == "mine":
            own.setdefault(editing, set()).add(caption)
            listing.write_caption(image, caption)
        else:
            caption = listing.caption_of(image, folder)
        saved = self._saved(folder, editing, caption)
        return {self.caption: caption, self.tokens: saved, self.loaded: json.dumps((editing, caption))}

    def _saved(self, folder: Path, editing: str, caption: str) -> str:
        """What stands below a caption that is on the disk."""
        item = listing.captioned(folder / editing, folder, caption)
        return view.saved(item, default_caption(self.context.state))

    def _redraw(self, name: str, editing: str, resolution: int) -> str:
        items = listing.read(self._folder(name))
        at = listing.position(items, editing)
        return "" if at is None else self._picture(items[at], resolution)

    def _picture(self, item: Item, resolution: int) -> str:
        picture = large_picture(item.path, item.mask, self.context.workspace.thumbnails)
        return view.crop(item, picture, int(resolution))


def _known(editing: str, loaded: str, own: Own) -> set[str]:
    """The captions of an image that this page has read or written."""
    name, caption = json.loads(loaded or '["", ""]')
    return own.get(editing, set()) | ({caption} if name == editing else set())
