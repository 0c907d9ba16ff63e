"""What the Train tab is set to, for tabs that judge a dataset as it would be trained; no Gradio."""

from __future__ import annotations

from sdlora import TrainConfig
from sdlora.config import fields
from webui.state import PageState

_FIELDS = {
    field.name: field for field in fields.fields(TrainConfig) if field.name in ("images.resolution", "captions.default")
}


def resolutions(state: PageState) -> tuple[int, ...] | None:
    """The edges that training is set to, in pixels; None where Train was never opened, or holds none that works."""
    name = "images.resolution"
    shown = state.get("train.form", {}).get(name)
    config, _ = fields.check(TrainConfig, [_FIELDS[name]], {name: shown})
    return None if shown is None or config is None else tuple(config.images.resolutions)


def default_caption(state: PageState) -> str | None:
    """What training is to take for images without a caption; None for nothing."""
    name = "captions.default"
    value = fields.read(_FIELDS[name], state.get("train.form", {}).get(name))
    return None if value is None else str(value)
