"""Names of weights in the original (LDM) layout, from their names in diffusers and transformers.

The way back is diffusers' own conversion; a test runs both on every weight of every family.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_PIECES = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPENCLIP_PIECES = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "text_projection.weight": "text_projection",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def original_unet_name(name: str, layers_per_block: int, up_attentions: Sequence[bool]) -> str:
    """A UNet weight's original name, without `model.diffusion_model.`.

    up_attentions: for each up block whether it has attention, which decides where its upsampler stands.
    """
    for end, original in _UNET_ENDS.items():
        if name.startswith(end + "."):
            return original + name.removeprefix(end)
    block, rest = _unet_block(name, layers_per_block, up_attentions)
    for part, original in _RESNET.items():
        if rest.startswith(part + "."):
            rest = original + rest.removeprefix(part)
    return f"{block}.{rest}"


def _unet_block(name: str, layers_per_block: int, up_attentions: Sequence[bool]) -> tuple[str, str]:
    """The original name of the block that a weight stands in, and what follows it."""
    match = re.fullmatch(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        match = re.fullmatch(r"(mid_block)()\.(\w+)\.(\d+)\.(.+)", name)
        assert match is not None, name
        place = 1 if match[3] == "attentions" else 2 * int(match[4])
        return f"middle_block.{place}", match[5]
    side, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    per_level = layers_per_block + 1
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * per_level}.0", rest.replace("conv.", "op.", 1)
        return f"input_blocks.{1 + level * per_level + index}.{int(kind == 'attentions')}", rest
    if kind == "upsamplers":
        return f"output_blocks.{level * per_level + layers_per_block}.{1 + int(up_attentions[level])}", rest
    return f"output_blocks.{level * per_level + index}.{int(kind == 'attentions')}", rest


def original_vae_name(name: str, levels: int) -> str:
    """A VAE weight's original name, without `first_stage_model.`."""
    for piece, original in _VAE_PIECES.items():
        name = re.sub(rf"\b{re.escape(piece)}\b", original, name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)

    def up(match: re.Match[str]) -> str:
        level = levels - 1 - int(match[1])
        return f"up.{level}.upsample" if match[2] == "upsamplers.0" else f"up.{level}.block.{match[3]}"

    return re.sub(r"up_blocks\.(\d+)\.(upsamplers\.0|resnets\.(\d+))", up, name)


def original_openclip_name(name: str) -> str:
    """An OpenCLIP weight's original name; q_proj, k_proj and v_proj become the one `in_proj_` that holds all three."""
    for piece, original in _OPENCLIP_PIECES.items():
        name = name.replace(piece, original)
    return re.sub(r"attn\.[qkv]_proj\.", "attn.in_proj_", name)
