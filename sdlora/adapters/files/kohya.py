"""Kohya names of trained modules, to and from (part, diffusers module path): pure string maps.

kohya's sd-scripts names a module `<prefix>_<path with underscores>`. Two habits of it matter to every other tool:
- text encoders always carry `text_model_` (transformers 5.6 dropped that level from CLIPTextModel's module names);
- SDXL's UNet is named as in the original (LDM) code, `input_blocks_4_1_...`, SD 1.x and 2.x as in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from sdlora.config.base_model import FamilyName

Part = Literal["unet", "text_encoder", "text_encoder_2"]
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")

TEXT_MODEL = "text_model."
"""The level that CLIPTextModel has in file names, whatever the installed transformers calls its modules."""
TEXT_PROJECTION = "text_projection"
"""The one layer of a text encoder that stands beside that level, not in it."""

_RESNET_TO_LDM = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_RESNET_FROM_LDM = {ldm: diffusers for diffusers, ldm in _RESNET_TO_LDM.items()}

_ENDS_TO_LDM = {
    "conv_in": "input_blocks_0_0",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
_ENDS_FROM_LDM = {ldm: diffusers for diffusers, ldm in _ENDS_TO_LDM.items()}

_LAYERS_PER_BLOCK = 2
"""Of SDXL (as of all Stable Diffusion): down blocks have 2 resnets and a downsampler, up blocks 3 and an upsampler."""

# Underscores stand for dots and for themselves; only this list of names tells one from the other.
_WORDS = re.compile(
    "(?:^|_)(down_blocks|mid_block|up_blocks|transformer_blocks|proj_in|proj_out|to_q|to_k|to_v|to_out|time_emb_proj"
    "|conv_shortcut|text_model|self_attn|q_proj|k_proj|v_proj|out_proj|text_projection|conv_in|conv_out"
    "|conv_norm_out|layer_norm1|layer_norm2|final_layer_norm"
    "|time_embedding|add_embedding|linear_1|linear_2|[^_]+)(?=_|$)"
)


def prefix(part: Part, family: FamilyName) -> str:
    """Kohya's prefix of a part: lora_unet, lora_te (SD 1.x, 2.x), lora_te1 and lora_te2 (SDXL)."""
    if part == "unet":
        return "lora_unet"
    if family != "sdxl":
        return "lora_te"
    return "lora_te1" if part == "text_encoder" else "lora_te2"


def kohya_name(part: Part, path: str, family: FamilyName) -> str:
    """Name under which other tools look for a module, for example lora_unet_mid_block_attentions_0_proj_in.

    path: dotted diffusers/transformers module path inside the part, with or without `text_model.`.
    """
    if part != "unet" and path != TEXT_PROJECTION:
        path = TEXT_MODEL + path.removeprefix(TEXT_MODEL)
    flat = path.replace(".", "_")
    if part == "unet" and family == "sdxl":
        flat = to_ldm(flat)
    return f"{prefix(part, family)}_{flat}"


def kohya_names(paths: Iterable[tuple[Part, str]], family: FamilyName) -> dict[str, tuple[Part, str]]:
    """All modules of a model by kohya name: the unambiguous way back from a file to this very model's paths."""
    return {kohya_name(part, path, family): (part, path) for part, path in paths}


def module_path(name: str, family: FamilyName) -> tuple[Part, str] | None:
    """Part and dotted diffusers path of a kohya name (SDXL: LDM or diffusers spelling), None for any other name.

    Text-encoder paths come back with `text_model.`, as files have it.
    """
    for part in PARTS:
        start = prefix(part, family) + "_"
        # A family without a second encoder would find the first one's layers under this part as well.
        if not name.startswith(start) or (part == "text_encoder_2" and family != "sdxl"):
            continue
        flat = name.removeprefix(start)
        if part == "unet":
            flat = from_ldm(flat) if family == "sdxl" else flat
        return part, ".".join(_WORDS.findall(flat))  # known words of several syllables keep their underscores
    return None


def canonical(name: str, family: FamilyName | None) -> str:
    """The kohya name as this package writes it: LDM spelling for SDXL and diffusers' for the others, `text_model_` and
    the right te prefix.
    """
    start, _, rest = name.partition("_")
    if start != "lora":
        return name
    kind, _, flat = rest.partition("_")
    if kind == "unet" and family is not None:
        return f"lora_unet_{to_ldm(flat) if family == 'sdxl' else from_ldm(flat)}"
    if kind in {"te", "te1", "te2"}:
        if family == "sdxl" and kind == "te":
            kind = "te1"
        if family in {"sd1", "sd2"} and kind == "te1":
            kind = "te"
        flat = flat.removeprefix("text_model_")
        flat = flat if flat == TEXT_PROJECTION else f"text_model_{flat}"
        return f"lora_{kind}_{flat}"
    return name


def to_ldm(flat: str) -> str:
    """UNet path, underscored: diffusers spelling to SDXL's original one. Anything else comes back unchanged."""
    match = re.fullmatch(r"(down_blocks|up_blocks)_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)", flat)
    if match:
        side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if side == "down_blocks":
            # input_blocks_0 is conv_in, so down blocks count from 1; nothing stands before the up blocks.
            first = 1 + block * (_LAYERS_PER_BLOCK + 1)
            if kind == "downsamplers":
                return f"input_blocks_{first + _LAYERS_PER_BLOCK}_0_op"
            start = f"input_blocks_{first + index}"
        else:
            first = block * (_LAYERS_PER_BLOCK + 1)
            if kind == "upsamplers":
                return f"output_blocks_{first + _LAYERS_PER_BLOCK}_2_conv"
            start = f"output_blocks_{first + index}"
        return f"{start}_0_{_RESNET_TO_LDM.get(rest, rest)}" if kind == "resnets" else f"{start}_1_{rest}"
    match = re.fullmatch(r"mid_block_(resnets|attentions)_(\d+)_(.+)", flat)
    if match:
        if match[1] == "attentions":
            return f"middle_block_1_{match[3]}"
        # The resnets are 0 and 2, as the attention stands between them.
        return f"middle_block_{2 * int(match[2])}_{_RESNET_TO_LDM.get(match[3], match[3])}"
    return _ENDS_TO_LDM.get(flat, flat)


def from_ldm(flat: str) -> str:
    """UNet path, underscored: original spelling (of any family) to diffusers'. Anything else comes back unchanged."""
    match = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d+)_(.+)", flat)
    if match:
        side, number, slot, rest = match[1], int(match[2]), int(match[3]), match[4]
        block, index = divmod(number - (side == "input"), _LAYERS_PER_BLOCK + 1)
        start = f"down_blocks_{block}" if side == "input" else f"up_blocks_{block}"
        if side == "input" and (slot, rest) == (0, "op"):
            return f"{start}_downsamplers_0_conv"
        if side == "output" and slot > 0 and rest == "conv":  # slot 1 in SD 1.x and 2.x, where a block has no attention
            return f"{start}_upsamplers_0_conv"
        kind = "attentions" if slot == 1 else "resnets"
        return f"{start}_{kind}_{index}_{_RESNET_FROM_LDM.get(rest, rest)}"
    match = re.fullmatch(r"middle_block_([012])_(.+)", flat)
    if match:
        if match[1] == "1":
            return f"mid_block_attentions_0_{match[2]}"
        return f"mid_block_resnets_{int(match[1]) // 2}_{_RESNET_FROM_LDM.get(match[2], match[2])}"
    return _ENDS_FROM_LDM.get(flat, flat)
