"""A model from one .safetensors or .ckpt file in the original (LDM) layout, with no network.

Configs and vocabulary ship with sdlora; diffusers' own conversion functions translate the names. Tensors are views of
the file's memory map until each is cast into its module, so no second copy of the weights is ever held.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as conversion
from torch import Tensor
from transformers import CLIPTokenizer

from sdlora.config.base_model import FamilyName
from sdlora.errors import ModelError
from sdlora.models.components import TextEncoder, build_text_encoder, build_unet, build_vae, check_complete
from sdlora.models.configs import ModelConfig, Shapes, fit_text_encoder, fit_unet, fit_vae, shipped_configs
from sdlora.models.detection import Detection
from sdlora.models.headers import read_pickled
from sdlora.models.recognition import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_TEXT_2_PREFIX,
    SDXL_TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    refuse_scales,
    refuse_whole_numbers,
)
from sdlora.models.tokenizer import END, OPENCLIP_PAD, clip_tokenizer

Weights = dict[str, Tensor]

_TEXT_PREFIXES = {
    "sd1": (SD1_TEXT_PREFIX,),
    "sd2": (SD2_TEXT_PREFIX,),
    "sdxl": (SDXL_TEXT_PREFIX, SDXL_TEXT_2_PREFIX),
}
_OPENCLIP_PREFIXES = (SD2_TEXT_PREFIX, SDXL_TEXT_2_PREFIX)
# found in some files, and of no use to a text encoder without a projection, or to a VAE after its training
_IDLE_TEXT = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")
_IDLE_VAE = ("loss.", "model_ema.")


class SingleFile:
    """A model in one file, its parts built when they are asked for."""

    def __init__(self, path: Path, detection: Detection) -> None:
        self._where = str(path)
        self._family: FamilyName = detection.family
        self._configs = shipped_configs(detection.family, detection.prediction)
        self._weights = read_weights(path)

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet. Raises ModelError when its weights are incomplete or don't fit the family."""
        original = {name: tensor for name, tensor in self._weights.items() if name.startswith(UNET_PREFIX)}
        config = fit_unet(self._configs["unet"], _shapes(original, UNET_PREFIX))
        converted = conversion.convert_ldm_unet_checkpoint(original, config)
        _check_all_converted(original, converted, self._where)
        return build_unet(config, converted, dtype, self._where)

    def vae(self, dtype: torch.dtype) -> AutoencoderKL:
        """The VAE. Raises ModelError when the file has none."""
        original = _under(self._weights, VAE_PREFIX)
        if not original:
            raise ModelError(f"{self._where}: holds no VAE; give one as base_model.vae")
        return _vae(original, self._configs["vae"], dtype, self._where)

    def text_encoders(self, dtype: torch.dtype) -> list[TextEncoder]:
        """The text encoder, for SDXL both."""
        encoders = []
        for part, prefix in zip(("text_encoder", "text_encoder_2"), _TEXT_PREFIXES[self._family], strict=False):
            convert = _convert_openclip if prefix in _OPENCLIP_PREFIXES else _convert_clip
            weights = convert(
                {name: tensor for name, tensor in self._weights.items() if name.startswith(prefix)}, prefix
            )
            config = _fit_text_encoder(self._configs[part], weights, self._where)
            encoders.append(build_text_encoder(config, weights, dtype, self._where))
        return encoders

    def tokenizers(self) -> list[CLIPTokenizer]:
        """The shipped tokenizer, padding as each encoder was trained."""
        return [
            clip_tokenizer(OPENCLIP_PAD if prefix in _OPENCLIP_PREFIXES else END)
            for prefix in _TEXT_PREFIXES[self._family]
        ]

    def scheduler_config(self) -> Mapping[str, Any]:
        """The family's usual one, as a single file holds none."""
        return self._configs["scheduler"]


def read_weights(path: Path) -> Weights:
    """The file's tensors, mapped from disk where its format allows. Raises ModelError for quantised weights."""
    if path.suffix.lower() != ".safetensors":
        weights = read_pickled(path)
    else:
        from safetensors.torch import load_file

        weights = load_file(path)
    refuse_scales(str(path), weights)
    kinds = {name: str(one.dtype).removeprefix("torch.") for name, one in weights.items()}
    refuse_whole_numbers(str(path), kinds)
    return weights


def load_vae_file(path: Path, family: FamilyName, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE from its own file, in original or diffusers names. Raises ModelError for any other file."""
    weights = read_weights(path)
    weights = _under(weights, VAE_PREFIX) or weights
    if "encoder.conv_in.weight" not in weights:
        raise ModelError(f"{path}: holds no VAE of Stable Diffusion, which base_model.vae must be")
    return _vae(weights, shipped_configs(family)["vae"], dtype, str(path))


def _vae(weights: Weights, config: ModelConfig, dtype: torch.dtype, where: str) -> AutoencoderKL:
    original = {name: tensor for name, tensor in weights.items() if not name.startswith(_IDLE_VAE)}
    try:
        config = fit_vae(config, _shapes(original))
    except KeyError as error:
        raise ModelError(f"{where} (VAE): incomplete, {error} is missing") from error
    if any(name.startswith("encoder.down_blocks.") for name in original):
        return build_vae(config, original, dtype, where)
    converted = conversion.convert_ldm_vae_checkpoint(original, config)
    _check_all_converted(original, converted, f"{where} (VAE)")
    return build_vae(config, converted, dtype, where)


def _under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _shapes(weights: Weights, prefix: str = "") -> Shapes:
    return {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in weights.items()}


def _check_all_converted(original: Weights, converted: Weights, where: str) -> None:
    """Every weight must have gone somewhere: the conversion keeps or slices tensors, so addresses tell."""
    addresses = {tensor.data_ptr() for tensor in converted.values()}
    check_complete(where, (), [name for name, tensor in original.items() if tensor.data_ptr() not in addresses])


def _convert_clip(original: Weights, prefix: str) -> Weights:
    """A CLIP encoder's weights by transformers' names; some old merges lack `text_model.` in theirs."""
    start = "text_model."
    weights: Weights = conversion.convert_ldm_clip_checkpoint(original)
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(_IDLE_TEXT)}
    return {name if name.startswith(start) else start + name: tensor for name, tensor in kept.items()}


def _convert_openclip(original: Weights, prefix: str) -> Weights:
    """An OpenCLIP encoder's weights by transformers' names. SD 2.x takes the last layer but one: 23 of 24 are kept."""
    width = original[f"{prefix}positional_embedding"].shape[1]
    # All that diffusers' function asks of a model is its width, so none has to be built.
    stand_in = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    converted: Weights = conversion.convert_open_clip_checkpoint(stand_in, original, prefix=prefix)
    return converted


def _fit_text_encoder(config: ModelConfig, weights: Weights, where: str) -> ModelConfig:
    start = "text_model.encoder.layers."
    layers = {name.removeprefix(start).split(".")[0] for name in weights if name.startswith(start)}
    try:
        width = weights["text_model.embeddings.position_embedding.weight"].shape[1]
        intermediate = weights[f"{start}0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise ModelError(f"{where} (text encoder): incomplete, {error} is missing") from error
    projection = weights.get("text_projection.weight")
    return fit_text_encoder(
        config, width, len(layers), intermediate, None if projection is None else projection.shape[0]
    )
