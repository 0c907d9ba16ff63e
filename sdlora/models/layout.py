"""A base model's UNet and text encoders without weights: to count and choose layers before anything is loaded.

They are to be read only: a check, a dry run and an estimate share them, as making one takes longer than all they ask.
"""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from diffusers import UNet2DConditionModel

from sdlora.config.base_model import BaseModelConfig, FamilyName, Prediction
from sdlora.models.components import TextEncoder, text_encoder_layout
from sdlora.models.configs import ModelConfig, fit_unet, shipped_configs
from sdlora.models.detection import Detection
from sdlora.models.headers import read_header
from sdlora.models.hub import model_file
from sdlora.models.recognition import UNET_PREFIX
from sdlora.models.source import locate

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def unet_layout(config: BaseModelConfig, detection: Detection) -> UNet2DConditionModel:
    """The UNet on torch's meta device: true shapes, no memory. Raises ModelError when the model isn't there."""
    return _unet(json.dumps(_unet_config(config, detection)))


def family_layout(family: FamilyName) -> UNet2DConditionModel:
    """The same of a family's own models, which need not be there."""
    return _unet(json.dumps(shipped_configs(family)["unet"]))


def text_encoder_layouts(config: BaseModelConfig, detection: Detection) -> list[TextEncoder]:
    """The same of its text encoders, two of SDXL."""
    source = locate(config.model)
    if source.kind == "file":
        return family_text_encoders(detection.family, detection.prediction)
    paths = [model_file(source, f"{part}/config.json", config.revision) for part in _TEXT_ENCODERS]
    return [_text_encoder(path.read_text(encoding="utf-8")) for path in paths if path is not None]


def family_text_encoders(family: FamilyName, prediction: Prediction = "epsilon") -> list[TextEncoder]:
    """The same of a family's own models, which need not be there; single files have these, whatever their UNet."""
    configs = shipped_configs(family, prediction)
    return [_text_encoder(json.dumps(configs[part])) for part in _TEXT_ENCODERS if part in configs]


@lru_cache(maxsize=2)
def _unet(content: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(json.loads(content))
    return unet


@lru_cache(maxsize=4)
def _text_encoder(content: str) -> TextEncoder:
    return text_encoder_layout(json.loads(content))


def _unet_config(config: BaseModelConfig, detection: Detection) -> ModelConfig:
    source = locate(config.model)
    if source.kind == "file":
        assert source.path is not None
        shapes = {
            name.removeprefix(UNET_PREFIX): tuple(shape)
            for name, shape in read_header(source.path).shapes.items()
            if name.startswith(UNET_PREFIX)
        }
        return fit_unet(shipped_configs(detection.family, detection.prediction)["unet"], shapes)
    path = model_file(source, "unet/config.json", config.revision)
    assert path is not None, "detect() has read this file"
    content: ModelConfig = json.loads(path.read_text(encoding="utf-8"))
    return content
