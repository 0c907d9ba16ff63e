"""Tells which Stable Diffusion family an adapter file is for, from its names, shapes and metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from sdlora.config.base_model import FamilyName

_CROSS_ATTENTION: dict[int, FamilyName] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_SDXL_NAME = re.compile(r"lora_te2_|lora_unet_(?:input_blocks|middle_block|output_blocks)_|.*_transformer_blocks_[1-9]")
_NOT_SDXL_NAME = re.compile(r"lora_unet_(?:down_blocks_0_attentions|up_blocks_3|down_blocks_3|up_blocks_2_attentions)")
_SD2_TEXT_LAYER = re.compile(r"lora_te_(?:text_model_)?encoder_layers_(?:1[2-9]|2\d)_")


class Shaped(Protocol):
    """A tensor, or what a file's header tells of it."""

    @property
    def shape(self) -> Sequence[int]:
        """Length along every axis."""


def guess_family(modules: Mapping[str, Mapping[str, Shaped]], metadata: Mapping[str, str]) -> FamilyName | None:
    """Family by the strongest evidence there is: block names, then layer widths, then metadata; None if none tells.

    modules: factors by kohya name (either spelling).
    """
    names = list(modules)
    if any(_SDXL_NAME.match(name) for name in names):
        return "sdxl"
    if any(_SD2_TEXT_LAYER.match(name) for name in names):
        return "sd2"
    told = _by_width(modules) or _by_metadata(metadata)
    if told is None and any(_NOT_SDXL_NAME.match(name) for name in names):
        told = _by_projection(modules)
    if told is None and any(name.startswith("lora_te1_") for name in names):
        return "sdxl"
    return told


def _by_width(modules: Mapping[str, Mapping[str, Shaped]]) -> FamilyName | None:
    for name, factors in modules.items():
        width = _input_width(factors)
        if width is None:
            continue
        if name.endswith(("_attn2_to_k", "_attn2_to_v")) and width in _CROSS_ATTENTION:
            return _CROSS_ATTENTION[width]
        if name.startswith("lora_te_") and name.endswith("_self_attn_q_proj") and width in (768, 1024):
            return _CROSS_ATTENTION[width]
    return None


def _by_metadata(metadata: Mapping[str, str]) -> FamilyName | None:
    version = metadata.get("ss_base_model_version", "")
    architecture = metadata.get("modelspec.architecture", "")
    starts: tuple[tuple[str, str, FamilyName], ...] = (
        ("sdxl", "stable-diffusion-xl", "sdxl"),
        ("sd_v2", "stable-diffusion-v2", "sd2"),
        ("sd_v1", "stable-diffusion-v1", "sd1"),
    )
    for version_start, architecture_start, family in starts:
        if version.startswith(version_start) or architecture.startswith(architecture_start):
            return family
    return "sd2" if metadata.get("ss_v2") == "True" else None


def _by_projection(modules: Mapping[str, Mapping[str, Shaped]]) -> FamilyName | None:
    """SD 1.x projects with 1x1 convolutions, SD 2.x with linear layers."""
    for name, factors in modules.items():
        if name.endswith("_proj_in") and "lora_down" in factors:
            return "sd1" if len(factors["lora_down"].shape) == 4 else "sd2"
    return None


def _input_width(factors: Mapping[str, Shaped]) -> int | None:
    """Inputs of a linear layer."""
    for name in ("lora_down", "hada_w1_b"):
        if name in factors and len(factors[name].shape) > 1:
            return factors[name].shape[1]
    halves = [factors.get(name, factors.get(f"{name}_b")) for name in ("lokr_w1", "lokr_w2")]
    widths = [half.shape[1] for half in halves if half is not None and len(half.shape) > 1]
    return widths[0] * widths[1] if len(widths) == 2 else None
