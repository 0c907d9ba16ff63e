"""Prompts for previews out of the captions that are trained."""

from __future__ import annotations

from collections.abc import Sequence

from sdlora.config.preview_prompts import parse_preview
from sdlora.config.train import TrainConfig
from sdlora.data.images import ImageRecord
from sdlora.models.prompts import literal


def without_taken(config: TrainConfig) -> TrainConfig:
    """The configuration without the wish for captions as prompts, where there are prompts: a run has taken them."""
    if not (config.previews.prompts and config.previews.from_captions):
        return config
    return config.model_copy(update={"previews": config.previews.model_copy(update={"from_captions": 0})})


def with_captions(config: TrainConfig, records: Sequence[ImageRecord]) -> TrainConfig:
    """The configuration with training captions as prompts, where it has none of its own and asks for some.

    records: the trained images.
    """
    num_wanted, own = config.previews.from_captions, [record for record in records if not record.is_class]
    if config.previews.prompts or not num_wanted or not own:
        return config
    texts = [
        # As a prompt spells it: brackets of a caption are text, those of a prompt are weights.
        text if record.captions.weights else literal(text)
        for record in own[:: max(1, len(own) // num_wanted)][:num_wanted]
        if (text := record.plain_caption().strip())
    ]
    prompts = tuple(text for text in dict.fromkeys(texts) if parse_preview(text).prompt == text)
    return config.model_copy(update={"previews": config.previews.model_copy(update={"prompts": prompts})})
