"""A loss mask for the image in the editor, painted over it: which part of it is trained."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.sets import folders, listing, masks
from sdlora.data.sets.listing import Item
from sdlora.data.thumbnails import large_picture
from sdlora.errors import DataError
from webui.context import QUICK, Context
from webui.layout import hidden_text, live_html, problems_html, small_button
from webui.problems import shown_in
from webui.scripts import LIVE

_MEANINGS = [("is trained", "trained"), ("is left out", "left out")]


class MaskPanel:
    """Made inside the image editor's layout. Paint that is not saved yet is saved when another image comes.

    `painted` names dataset and image (see `typed`): another dataset may be chosen by then, with an image of that name.
    """

    def __init__(self, context: Context, chosen: gr.Dropdown, editing: gr.Textbox) -> None:
        self.context = context
        self.chosen = chosen
        self.editing = editing
        self._lay_out()

    def _lay_out(self) -> None:
        with gr.Accordion("Mask", open=False, elem_id="dataset-mask-box") as self.box:
            with gr.Column(elem_classes="off-page"):
                self.painted = hidden_text("dataset-painted", "Dataset and image under the brush")
            self.canvas = gr.ImageEditor(
                label="Paint over a part of the image",
                type="pil",
                sources=(),
                layers=False,
                transforms=(),
                brush=gr.Brush(default_size=32, colors=["#ff2d95"], color_mode="fixed"),
                height=420,
                elem_id="dataset-mask-canvas",
                visible=False,  # until it is needed: its scripts are a third of what a page loads
            )
            self.meaning = gr.Radio(
                _MEANINGS, value="trained", label="What is painted", elem_id="dataset-mask-meaning",
                info="Replaces the mask that the image has (red: left out). Trained with images.mask=file.",
            )  # fmt: skip
            with gr.Row(elem_classes="bar"):
                self.save = small_button("Save mask", "dataset-mask-save", 100)
                self.remove = small_button("Remove mask", "dataset-mask-remove", 110)
            self.said = live_html("dataset-mask-said", js_on_load=LIVE)
            self.problems = problems_html("dataset-mask-problems", elem_classes="bare")

    def wire(self, views: list[Any], refreshed: Any, around: list[Any]) -> None:
        """Connect everything. views, refreshed, around: the browser's, for what a changed mask changes elsewhere."""
        shown = [self.canvas, self.painted, self.said, self.problems]
        given = [self.painted, self.canvas, self.meaning]
        self.box.expand(shown_in(self.problems, self._load), self.editing, shown, **QUICK)
        self.box.collapse(shown_in(self.problems, self._leave), given, shown, **QUICK)
        self.editing.change(shown_in(self.problems, self._turn), [*given, self.editing], shown, **QUICK)

        def saved(act: Any) -> Any:
            def acted(painted: str, canvas: Any, meaning: Any, name: str, *around: Any) -> dict[Any, Any]:
                folder, item = self._item(painted)
                words = act(folder, item, canvas, meaning)
                # Another dataset that is chosen by then is about to be shown, with all that belongs to it.
                shown = refreshed(folder, *around) if folder.name == name else {}
                return {**shown, self.canvas: self._value(self._item(painted)[1]), self.said: escape(words)}

            return acted

        for button, act in ((self.save, _save), (self.remove, _remove)):
            outputs = [*views, self.canvas, self.said, self.problems]
            button.click(shown_in(self.problems, saved(act)), [*given, self.chosen, *around], outputs, **QUICK)

    def _load(self, editing: str) -> dict[Any, Any]:
        if not editing:
            return {self.canvas: None, self.painted: "", self.said: ""}
        value = self._value(self._item(editing)[1])
        return {self.canvas: gr.update(value=value, visible=True), self.painted: editing, self.said: ""}

    def follow(self, event: Any) -> None:
        """Follow an event such as an Undo's `then`: what was said may not be so, the picture may have another mask."""
        shown = [self.canvas, self.painted, self.said, self.problems]
        event(shown_in(self.problems, self._changed), [self.painted, self.canvas], shown, **QUICK)

    def renamed(self, old: str, new: str, painted: str) -> dict[Any, Any]:
        """Have what is painted follow its dataset to another name."""
        dataset, _, image = painted.partition("/")
        return {self.painted: f"{new}/{image}"} if dataset == old else {}

    def _changed(self, painted: str, canvas: Any) -> dict[Any, Any]:
        # Nothing to show while the panel is closed, and paint that is not saved yet stays.
        return {self.said: ""} if not painted or _is_painted(canvas) else self._load(painted)

    def _leave(self, painted: str, canvas: Any, meaning: Any) -> dict[Any, Any]:
        """The panel is closed."""
        return {self.canvas: None, self.painted: "", self.said: self._keep(painted, canvas, meaning)}

    def _turn(self, painted: str, canvas: Any, meaning: Any, editing: str) -> dict[Any, Any]:
        """Another image is in the editor; nothing to do while the panel is closed."""
        if not painted or painted == editing:
            return {self.said: gr.skip()}
        kept = self._keep(painted, canvas, meaning)
        return {**self._load(editing), self.said: kept}

    def _keep(self, painted: str, canvas: Any, meaning: Any) -> str:
        """Save paint that nobody saved, for what it was painted over; returns what is said of it."""
        if not painted or not _is_painted(canvas):
            return ""
        try:
            folder, item = self._item(painted)
        except DataError as error:
            return escape(f"{error} What was painted over it was not saved.")
        return escape(_save(folder, item, canvas, meaning))

    def _value(self, item: Item) -> dict[str, Any]:
        picture = str(large_picture(item.path, item.mask, self.context.workspace.thumbnails))
        return {"background": picture, "layers": [], "composite": picture}

    def _item(self, place: str) -> tuple[Path, Item]:
        """Dataset and image."""
        dataset, _, name = place.partition("/")
        folder = self._folder(dataset)
        item = next((one for one in listing.read(folder) if one.name == name), None)
        if item is None:
            raise DataError(f"{name or 'The image'} is not in the dataset any more.")
        return folder, item

    def _folder(self, name: str | None) -> Path:
        return folders.folder_of(self.context.workspace.datasets, name)


def _layers(canvas: Any) -> list[Any]:
    return list(canvas.get("layers") or ()) if isinstance(canvas, dict) else []


def _is_painted(canvas: Any) -> bool:
    return any(layer.getbbox() for layer in _layers(canvas))


def _save(folder: Path, item: Item, canvas: Any, meaning: masks.Meaning) -> str:
    return masks.save_painted(folder, item, _layers(canvas), meaning)


def _remove(folder: Path, item: Item, canvas: Any, meaning: masks.Meaning) -> str:
    return masks.remove_mask(folder, item)
