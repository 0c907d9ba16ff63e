"""Base models that are loaded once a process, and copied for every test that changes one."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache

from sdlora.config.base_model import BaseModelConfig
from sdlora.models.bundle import Bundle
from sdlora.models.loading import load


def copy_of(config: BaseModelConfig) -> Bundle:
    """A bundle with a UNet and text encoders of its own; its VAE and tokenizers, which no adapter changes, are shared.

    Only for models whose files stay as they are.
    """
    bundle = _loaded(config)
    return replace(bundle, unet=deepcopy(bundle.unet), text_encoders=deepcopy(bundle.text_encoders))


@cache
def _loaded(config: BaseModelConfig) -> Bundle:
    return load(config)
