"""Which Stable Diffusion family a model belongs to, or what else it is, in words a user can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdlora.config.base_model import FamilyName
from sdlora.errors import ModelError
from sdlora.models.headers import Header, read_header, read_table

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
SD1_TEXT_PREFIX = "cond_stage_model.transformer."
SD2_TEXT_PREFIX = "cond_stage_model.model."
SDXL_TEXT_PREFIX = "conditioner.embedders.0.transformer."
SDXL_TEXT_2_PREFIX = "conditioner.embedders.1.model."
EMA_PREFIX = "model_ema."
"""Of a moving average of the weights, which original training scripts keep beside them; no tool generates by it."""

_UNQUANTISED = "take the model in fp16, bf16 or fp32, which base_model.quantization quantises for a training"
_TRAINED = "sdlora trains Stable Diffusion 1.x, 2.x and SDXL"
INPAINTING_CHANNELS = 9
"""Input channels of an inpainting UNet: noisy latents, mask, latents of the masked picture."""
_IN_CHANNELS = {
    5: "a depth-conditioned model",
    7: "an upscaler",
    8: "an InstructPix2Pix model",
}
_GUIDED = (
    "a latent consistency model, whose UNet is told the guidance: without that it would be another model. Take the "
    "model that it was made from, in generating with an LCM adapter"
)
_LORA_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_", ".lokr_w", ".oft_", ".dora_scale")
_OTHER_MARKS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_stream_modulation": "Flux 2",
    "double_blocks.": "Flux",
    "edm_mean": "Playground v2.5 (EDM noise schedule)",
    "control_model.": "a ControlNet",
    "controlnet_cond_embedding": "a ControlNet",
    "adaln_single": "PixArt",
    "cap_embedder": "Lumina or Z-Image",
    "clip_txt_mapper": "Stable Cascade",
    "motion_modules": "an AnimateDiff motion module",
    "to_k_ip.": "an IP-Adapter",
    "conv_first.weight": "an upscaler",
    "RDB1.conv1": "an upscaler",
    "emb_params": "a textual-inversion embedding",
    "blocks.0.cross_attn": "a video or transformer model (Wan, Sana)",
}
_QUANTISED = re.compile(
    r"scaled_fp8$|\.scale_weight$|\.weight_scale(?:_\d)?$|\.comfy_quant$|\.absmax$|\.quant_(?:map|state\.)|\.nested_absmax$"
    r"|\.qweight$|\.qzeros$|\.SCB$|\.weight_format$|\.weight\._(?:data|scale|packed)$"
)
"""Tensors beside weights that hold packed or scaled numbers: without them these mean nothing."""
_WHOLE = re.compile(r"u?int\d+|[iu]\d+|bool")


# ---- single files


def recognise_header(header: Header) -> FamilyName:
    """The family of a single-file model. Raises ModelError for anything else, naming what it looks like."""
    names, path = header.shapes, header.path
    # LoRA marks first: a file of an adapter for another model should still be told as a LoRA.
    if any(mark in name for name in names for mark in _LORA_MARKS):
        raise ModelError(
            f"{path}: this is a LoRA file, not a base model; use adapter.start_from to go on training it, and give the "
            "model it was made for as base_model.model"
        )
    for mark, what in _OTHER_MARKS.items():
        if any(mark in name for name in names):
            raise ModelError(f"{path}: this is {what}; {_TRAINED}")
    if not header.has(UNET_PREFIX):
        raise ModelError(f"{path}: {_without_unet(header)}")
    refuse_scales(str(path), names)
    shape = header.shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if shape is None:
        raise ModelError(f"{header.path}: incomplete, the UNet's first layer is missing")
    refuse_input_channels(str(header.path), shape[1])
    if f"{UNET_PREFIX}time_embed.cond_proj.weight" in names:
        raise ModelError(f"{path}: this is {_GUIDED}")
    family = _family_of_header(header)
    if not header.has({"sd1": SD1_TEXT_PREFIX, "sd2": SD2_TEXT_PREFIX, "sdxl": SDXL_TEXT_PREFIX}[family]):
        raise ModelError(f"{path}: holds a UNet of family {family} but no text encoder; take the complete model file")
    return family


def refuse_scales(where: str, names: Iterable[str]) -> None:
    """Raise ModelError where tensors stand beside weights without which these mean nothing."""
    if packed := [name for name in names if _QUANTISED.search(name)]:
        raise ModelError(f"{where}: its weights are quantised ({packed[0]} goes with some of them); {_UNQUANTISED}")


def refuse_whole_numbers(where: str, kinds: Mapping[str, str]) -> None:
    """Raise ModelError where weights are whole numbers. kinds: by name, as safetensors or torch say it (I8, int8)."""
    packed = [name for name, kind in kinds.items() if name.endswith(".weight") and _WHOLE.fullmatch(kind.lower())]
    if packed:
        kind = kinds[packed[0]]
        raise ModelError(
            f"{where}: {len(packed)} weights are whole numbers, such as {packed[0]} in {kind}: quantised, which is not "
            f"read; {_UNQUANTISED}"
        )


def refuse_quantised_file(path: Path) -> None:
    """The same for a .safetensors file, by its header. Raises ModelError, also for one that is damaged."""
    refuse_scales(str(path), read_header(path).shapes)
    refuse_whole_numbers(str(path), {name: entry["dtype"] for name, entry in read_table(path)[0].items()})


def refuse_quantised_config(name: str, part: str, config: Mapping[str, Any] | None) -> None:
    """The same for a part of a diffusers model, by its config.json."""
    if config is not None and config.get("quantization_config"):
        what = "UNet" if part == "unet" else part
        raise ModelError(f"{name}: its {what} is quantised (quantization_config in its config.json); {_UNQUANTISED}")


def _family_of_header(header: Header) -> FamilyName:
    width = _cross_attention_width(header)
    levels = len({name.split(".")[3] for name in header.shapes if name.startswith(f"{UNET_PREFIX}input_blocks.")})
    labels = header.has(f"{UNET_PREFIX}label_emb.")
    depth = sum(
        name.startswith(f"{UNET_PREFIX}input_blocks.7.1.transformer_blocks.") and name.endswith("attn2.to_k.weight")
        for name in header.shapes
    )
    if levels == 9 and labels and depth == 10 and header.has(SDXL_TEXT_2_PREFIX):
        return "sdxl"
    if labels and not header.has(SDXL_TEXT_2_PREFIX) and header.has("conditioner.embedders.0.model."):
        raise ModelError(f"{header.path}: this is the SDXL refiner; train the SDXL base model, adapters don't fit both")
    if levels == 12 and not labels and depth == 1:
        if header.has(SD2_TEXT_PREFIX) or width == 1024:
            return "sd2"
        if header.has(SD1_TEXT_PREFIX) or width == 768:
            return "sd1"
    raise ModelError(
        f"{header.path}: a UNet of unknown family; {_TRAINED}. Looked at: {levels} input blocks (12 in SD 1 and 2, "
        f"9 in SDXL), cross-attention width {width} (768, 1024, 2048), transformer depth {depth} in input block 7 "
        f"(1, 1, 10), {'a' if labels else 'no'} size embedding, text encoders under {_text_prefixes_of(header)}"
    )


def _cross_attention_width(header: Header) -> int | None:
    return next(
        (
            shape[1]
            for name, shape in header.shapes.items()
            if name.startswith(UNET_PREFIX) and name.endswith("attn2.to_k.weight")
        ),
        None,
    )


def _text_prefixes_of(header: Header) -> str:
    prefixes = {
        ".".join(name.split(".")[: 3 if name.startswith("conditioner.") else 2])
        for name in header.shapes
        if name.startswith(("cond_stage_model.", "conditioner."))
    }
    return ", ".join(sorted(prefixes)) or "none"


def _without_unet(header: Header) -> str:
    if header.has(EMA_PREFIX):
        return (
            "holds the UNet as a moving average only (model_ema.*), under names without dots that no tool reads; take "
            "the file that holds model.diffusion_model.* too"
        )
    if header.has("down_blocks.") or header.has("unet.down_blocks."):
        return "this is the UNet alone of a diffusers model; give the folder that holds unet/, vae/ and text_encoder/"
    if header.has("input_blocks."):
        return "this is the UNet alone, without text encoder and VAE; take the complete model file"
    if header.has("encoder.down") or header.has(VAE_PREFIX):
        return "this is a VAE, not a base model; use base_model.vae for it"
    if header.has("text_model.") or header.has("transformer.resblocks."):
        return "this is a text encoder, not a base model"
    some = ", ".join(list(header.shapes)[:3])
    return f"not a Stable Diffusion model; {_TRAINED}. Looked at: {len(header.shapes)} tensors, the first are {some}"


# ---- diffusers folders


def recognise_config(name: str, index: Mapping[str, Any], unet: Mapping[str, Any] | None) -> FamilyName:
    """The family of a diffusers model by its model_index.json and unet/config.json. Raises ModelError for others."""
    pipeline = index.get("_class_name", "unknown")
    if unet is None:
        raise ModelError(f"{name}: this is a {pipeline} model, it has no UNet; {_TRAINED}")
    refuse_input_channels(name, int(unet.get("in_channels", 4)))
    if unet.get("time_cond_proj_dim") is not None:
        raise ModelError(f"{name}: this is {_GUIDED}")
    levels, depth = len(unet.get("block_out_channels", ())), unet.get("layers_per_block", 2)
    size_embedding = unet.get("addition_embed_type")
    if size_embedding == "text_time" and index.get("text_encoder", [None])[0] is None:
        raise ModelError(f"{name}: this is the SDXL refiner; train the SDXL base model, adapters don't fit both")
    if depth == 2 and levels == 3 and size_embedding == "text_time" and "text_encoder_2" in index:
        return "sdxl"
    if depth == 2 and levels == 4 and size_embedding is None and unet.get("class_embed_type") is None:
        # By linear projections and not by widths, which tiny models of a family don't share with its large ones.
        return "sd2" if unet.get("use_linear_projection") else "sd1"
    raise ModelError(
        f"{name}: a {pipeline} model of unknown family; {_TRAINED}. Looked at unet/config.json: {levels} levels (4 in "
        f"SD 1 and 2, 3 in SDXL), layers_per_block {depth} (2), addition_embed_type {size_embedding} (none, text_time "
        f"in SDXL), cross_attention_dim {unet.get('cross_attention_dim')} (768, 1024, 2048)"
    )


def refuse_input_channels(name: str, channels: int) -> None:
    """Raise ModelError unless the UNet takes the 4 channels of a latent, or an inpainting model's 9."""
    if channels not in (4, INPAINTING_CHANNELS):
        what = _IN_CHANNELS.get(channels, "no plain text-to-image model")
        raise ModelError(
            f"{name}: this is {what} (its UNet takes {channels} channels, not 4 or 9); use the plain model"
        )
