"""The parts of a model before they become a bundle: where they come from, how they are filled with weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeAlias

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdlora.errors import ModelError
from sdlora.models.configs import ModelConfig
from sdlora.models.host import forget_mapped

TextEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection

_LISTED = 5


class Parts(Protocol):
    """A place that a base model's parts can be loaded from, each frozen nowhere yet, in the dtype asked for."""

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet, its weights in this number type."""

    def vae(self, dtype: torch.dtype) -> AutoencoderKL:
        """The VAE that comes with the model, in this number type."""

    def text_encoders(self, dtype: torch.dtype) -> list[TextEncoder]:
        """One text encoder, two for SDXL."""

    def tokenizers(self) -> list[CLIPTokenizer]:
        """A tokenizer for each text encoder."""

    def scheduler_config(self) -> Mapping[str, Any]:
        """What scheduler_config.json says, or would say for a model in one file."""


def check_complete(where: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise ModelError when weights are missing, or left over with no place in the model."""
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for names, what in ((sorted(missing), "missing"), (sorted(unexpected), "without a place in the model"))
        if names
    ]
    if problems:
        raise ModelError(f"{where}: weights don't match the model ({'; '.join(problems)})")


def build_unet(config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype, where: str) -> UNet2DConditionModel:
    """A UNet that holds `weights` (diffusers names), cast to `dtype` one by one; empties `weights`."""
    # On meta nothing is allocated or initialised: every weight is about to be replaced anyway.
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    _fill(unet, weights, dtype, f"{where} (UNet)")
    return unet


def build_vae(config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype, where: str) -> AutoencoderKL:
    """A VAE that holds `weights` (diffusers names), cast to `dtype`; empties `weights`."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    _fill(vae, weights, dtype, f"{where} (VAE)")
    return vae


def text_encoder_layout(config: ModelConfig) -> TextEncoder:
    """A CLIP text encoder on torch's meta device: true shapes, no memory."""
    projected = config["architectures"] == ["CLIPTextModelWithProjection"]
    with torch.device("meta"):
        return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))


def build_text_encoder(config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype, where: str) -> TextEncoder:
    """A CLIP text encoder that holds `weights` (names with `text_model.`), cast to `dtype`; empties `weights`.

    Since transformers 5.6 CLIPTextModel has no `text_model` in its names, CLIPTextModelWithProjection still has.
    """
    encoder = text_encoder_layout(config)
    if not hasattr(encoder, "text_model"):
        for name in list(weights):
            weights[name.removeprefix("text_model.")] = weights.pop(name)
    _fill(encoder, weights, dtype, f"{where} (text encoder)")
    # No file holds these numbers, and on meta they were not made: without them every position would be garbage.
    embeddings = getattr(encoder, "text_model", encoder).embeddings
    positions = torch.arange(embeddings.position_embedding.num_embeddings).expand((1, -1))
    embeddings.register_buffer("position_ids", positions, persistent=False)
    return encoder


def _fill(module: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype, where: str) -> None:
    """Give a module on the meta device its weights, one after the other, so that no second copy is ever whole."""
    expected = module.state_dict()
    check_complete(where, expected.keys() - weights.keys(), weights.keys() - expected.keys())
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if weights[name].shape != tensor.shape
    ]
    if wrong:
        raise ModelError(f"{where}: {len(wrong)} weights have another shape: {', '.join(wrong[:_LISTED])}")
    for name in expected:
        mapped = weights.pop(name).detach()
        # copy: the file's memory map must not stay in use
        loaded = mapped.to(dtype, copy=True).contiguous()
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, nn.Parameter(loaded, requires_grad=False))
        forget_mapped([mapped])
