"""One image of a dataset, large, with what training cuts off, and its caption, saved as it is typed."""

from __future__ import annotations

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
from webui.layout import live_html, small_button

RESOLUTIONS = (256, 320, 384, 512, 640, 768, 1024)
DEFAULT_RESOLUTION = 512


class Editor:
    """Made inside the browser's layout, which moves it from image to image with `edit`.

    The name of the image lies in the page beside the box (`editing`), not on the server: both reach a handler as one,
    so a caption is never written to the image that came after it.
    """

    def __init__(self, context: Context, chosen: gr.Dropdown) -> None:
        self.context = context
        self.chosen = chosen
        self.loaded = gr.State(("", ""))  # the image in the editor, and its caption when it was read or written last
        self._lay_out()
        self._wire()

    def _lay_out(self) -> None:
        self.editing = gr.Textbox(visible="hidden", elem_id="dataset-editing", label="Image in the editor")
        self.picture = gr.HTML("", elem_id="dataset-picture")
        with gr.Row(elem_classes="bar pager"):
            self.previous = small_button("← Previous", "dataset-previous", 90)
            self.place = live_html("dataset-place")
            self.next = small_button("Next →", "dataset-next", 90)
        self.caption = gr.Textbox(
            label="Caption",
            info="Saved as you type. Tags are parted by commas.",
            elem_id="dataset-caption",
            lines=4,
            max_lines=14,
            placeholder="What is in the picture?",
        )
        self.tokens = gr.HTML("", elem_id="dataset-tokens")
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

    @property
    def views(self) -> list[Any]:
        """What `edit` returns updates for."""
        return [self.editing, self.picture, self.place, self.caption, self.tokens, self.loaded]

    @property
    def written(self) -> list[Any]:
        """The inputs of `keep`: dataset, image, caption, and how that was loaded."""
        return [self.chosen, self.editing, self.caption, self.loaded]

    def _wire(self) -> None:
        saved = [self.tokens, self.loaded]
        self.caption.input(handler(self._write), self.written, saved, **LAST_COUNTS)
        self.save.click(handler(self._write), self.written, saved, **QUICK)
        self.resolution.input(
            handler(self._redraw), [self.chosen, self.editing, self.resolution], self.picture, **LAST_COUNTS
        )

    def edit(self, items: Sequence[Item], at: int, resolution: int | None = None) -> dict[Any, Any]:
        """Show one of the items; an empty editor when there is none."""
        if not items:
            return {**dict.fromkeys(self.views, ""), self.loaded: ("", "")}
        item = items[at]
        return {
            self.editing: item.name,
            self.picture: self._picture(item, resolution or self.kept_resolution),
            self.place: view.place(item, at, len(items)),
            self.caption: item.caption,
            self.tokens: view.tokens(item.tokens, saved=False),
            self.loaded: (item.name, item.caption),
        }

    def keep(self, name: str, editing: str, caption: str, loaded: tuple[str, str]) -> None:
        """Before another image comes: write what was typed last, and leave alone what was not typed here."""
        if not editing or loaded[0] != editing or caption == loaded[1]:
            return
        image = self._folder(name) / editing
        if image.is_file():
            listing.write_caption(image, caption)

    @property
    def kept_resolution(self) -> int:
        """The resolution chosen last."""
        return int(self.context.state.get("dataset.resolution", DEFAULT_RESOLUTION))

    def _folder(self, name: str | None) -> Path:
        return folders.folder_of(self.context.workspace.datasets, name)

    def _write(self, name: str, editing: str, caption: str, loaded: tuple[str, str]) -> tuple[Any, Any]:
        """Save what the box holds for the image that it holds it for."""
        if not editing:
            return gr.skip(), gr.skip()
        image = self._folder(name) / editing
        if not image.is_file():
            raise DataError(f"{editing} is not in the dataset any more, so its caption was not saved.")
        if (editing, caption) != tuple(loaded):
            listing.write_caption(image, caption)
        return view.tokens(listing.count(caption.strip()), saved=True), (editing, caption)

    def _redraw(self, name: str, editing: str, resolution: int) -> str:
        items = listing.read(self._folder(name))
        at = listing.position(items, editing)
        return "" if at is None else self._picture(items[at], resolution)

    def _picture(self, item: Item, resolution: int) -> str:
        picture = large_picture(item.path, item.mask, self.context.workspace.thumbnails)
        return view.crop(item, picture, int(resolution))
