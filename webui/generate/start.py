"""The picture that generating starts from, and what is painted over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.errors import ConfigError
from sdlora.generation.request.painted import keep_painted
from webui.context import LAST_COUNTS, QUICK, Context, handler
from webui.form import Form
from webui.gradio_quirks import update_in_browser

_PICTURE, _IS_ON = "generate.start.image", "generate.start_on"


class StartPanel:
    """Image to image and inpainting: one editor for the picture and its mask."""

    def __init__(self, context: Context, form: Form) -> None:
        self.state, self.folder = context.state, context.workspace.start_images
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
                visible=False,  # until it is needed: its scripts are a third of what a page loads
            )
            with gr.Row():
                form.place("start.strength", label="Strength")
                form.place("start.mask_blur_px")
        context.remember(_IS_ON, self.is_on)
        context.on_load.append((self._kept, [], [self.editor], None))
        opened = f"() => [{update_in_browser(visible=True)}]"
        self.panel.expand(None, None, [self.editor], js=opened, api_visibility="private")
        self.editor.upload(None, None, [self.is_on], js="() => [true]", api_visibility="private")
        # At the upload, not at Generate: a page that is loaded anew before that has its picture still.
        self.editor.upload(handler(self._take), [self.editor], None, **LAST_COUNTS)
        self.editor.clear(handler(self._forget), None, [self.is_on], **QUICK)

    def read(self, values: Mapping[Any, Any]) -> tuple[Path | None, Path | None]:
        """Picture and mask for a request, kept as files. Raises ConfigError when it is on without a picture."""
        if not values[self.is_on]:
            return None, None
        picture, mask = self._keep(values[self.editor])
        picture = picture or self._kept_picture()
        if picture is None:
            raise ConfigError("the start image", ["Start from this picture is on, but there is no picture; add one"])
        self.state.set(_PICTURE, str(picture))
        return picture, mask

    def use(self, picture: Path | None) -> dict[Any, Any]:
        """What a handler returns to start from a picture, or from none."""
        if picture is None:
            self.state.set(_IS_ON, False)
            return {self.is_on: False}
        self.state.update({_PICTURE: str(picture), _IS_ON: True})
        return {self.editor: gr.update(value=_editor_value(picture), visible=True), self.is_on: True}

    def _keep(self, editor: Any) -> tuple[Path | None, Path | None]:
        """Picture and mask out of the editor's value, as files; both None for an empty editor."""
        background = editor.get("background") if isinstance(editor, dict) else None
        return (None, None) if background is None else keep_painted(background, editor.get("layers") or (), self.folder)

    def _kept_picture(self) -> Path | None:
        """The picture of before a reload, until it is cleared."""
        kept = self.state.get(_PICTURE)
        return Path(kept) if kept and Path(kept).is_file() else None

    def _kept(self) -> Any:
        kept = self._kept_picture()
        return gr.skip() if kept is None else _editor_value(kept)

    def _forget(self) -> bool:
        self.state.update({_PICTURE: None, _IS_ON: False})
        return False

    def _take(self, editor: Any) -> None:
        """Keep a picture that was just chosen, for when the page is loaded anew."""
        picture, _ = self._keep(editor)
        if picture is not None:
            self.state.update({_PICTURE: str(picture), _IS_ON: True})


def _editor_value(picture: Path) -> dict[str, Any]:
    """What an image editor is given to show a picture without a mask."""
    return {"background": str(picture), "layers": [], "composite": str(picture)}
