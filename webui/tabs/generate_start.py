"""The picture that drawing starts from, and what is painted over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.errors import ConfigError
from webui.context import LAST_COUNTS, QUICK, Context, handler
from webui.drawing.start_image import keep_editor
from webui.drawing.studio import Studio
from webui.form import Form

_PICTURE, _IS_ON = "generate.start.image", "generate.start_on"


class StartPanel:
    """Image to image and inpainting: one editor for the picture and its mask."""

    def __init__(self, context: Context, studio: Studio, form: Form) -> None:
        self.studio = studio
        with gr.Accordion(
            "Image to image, inpainting", open=False, elem_id="generate-start", elem_classes="settings"
        ) as self.panel:
            self.is_on = gr.Checkbox(
                False,
                label="Start from this picture",
                info="Nothing painted: all of it is generated anew. Off: generate from noise alone.",
                elem_id="generate-start-on",
            )
            self.editor = gr.ImageEditor(
                label="Start image: paint what to generate anew",
                type="pil",
                sources=("upload", "clipboard"),
                layers=False,
                transforms=(),
                brush=gr.Brush(default_size=24, colors=["#ff2d95"], color_mode="fixed"),
                height=420,
                elem_id="generate-start-editor",
            )
            with gr.Row():
                form.place("start.strength", label="Strength")
                form.place("start.mask_blur_px")
        context.remember(_IS_ON, self.is_on)
        context.on_load.append((self._kept, [], [self.editor]))
        self.was_opened = gr.State(False)
        self.panel.expand(handler(self._kept_once), [self.was_opened], [self.was_opened, self.editor], **QUICK)
        self.editor.upload(None, None, [self.is_on], js="() => [true]", api_visibility="private")
        self.editor.upload(handler(self._take), [self.editor], None, **LAST_COUNTS)
        self.editor.clear(handler(self._forget), None, [self.is_on], **QUICK)

    def read(self, values: Mapping[Any, Any]) -> tuple[Path | None, Path | None]:
        """Picture and mask for a request, kept as files. Raises ConfigError when it is on without a picture."""
        if not values[self.is_on]:
            return None, None
        picture, mask = keep_editor(values[self.editor], self.studio.start_images)
        picture = picture or self._kept_picture()
        if picture is None:
            raise ConfigError("the start image", ["Start from this picture is on, but there is no picture; add one"])
        self.studio.state.set(_PICTURE, str(picture))
        return picture, mask

    def use(self, picture: Path | None) -> dict[Any, Any]:
        """What a handler returns to start from a picture, or from none."""
        if picture is None:
            self.studio.state.set(_IS_ON, False)
            return {self.is_on: False}
        self.studio.state.update({_PICTURE: str(picture), _IS_ON: True})
        return {self.editor: _editor_value(picture), self.is_on: True}

    def _kept_picture(self) -> Path | None:
        """The picture of before a reload, until it is cleared."""
        kept = self.studio.state.get(_PICTURE)
        return Path(kept) if kept and Path(kept).is_file() else None

    def _kept(self) -> Any:
        kept = self._kept_picture()
        return gr.skip() if kept is None else _editor_value(kept)

    def _kept_once(self, was_opened: bool) -> tuple[bool, Any]:
        """The same when the editor comes into view first: unseen, it holds a picture but shows none."""
        return True, gr.skip() if was_opened else self._kept()

    def _forget(self) -> bool:
        self.studio.state.update({_PICTURE: None, _IS_ON: False})
        return False

    def _take(self, editor: Any) -> None:
        """Keep a picture that was just chosen, for when the page is loaded anew."""
        picture, _ = keep_editor(editor, self.studio.start_images)
        if picture is not None:
            self.studio.state.update({_PICTURE: str(picture), _IS_ON: True})


def _editor_value(picture: Path) -> dict[str, Any]:
    """What an image editor is given to show a picture without a mask."""
    return {"background": str(picture), "layers": [], "composite": str(picture)}
