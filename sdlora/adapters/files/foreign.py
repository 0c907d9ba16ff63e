"""What a file or a tensor is that is no Stable Diffusion adapter, in words: told by names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first that matches is told, so what only one model has stands above what several share.
_MODELS: tuple[tuple[str, str], ...] = (
    (r"lora_prior_(?:unet|te)_|clip_txt_(?:pooled_)?mapper|effnet_mapper", "Stable Cascade"),
    (r"control_model\.|lllite_|controlnet_cond_embedding|input_hint_block", "a ControlNet"),
    (r"motion_modules|temporal_transformer", "AnimateDiff"),
    (r"image_proj\.|ip_adapter\.|to_[kv]_ip\b", "an IP-Adapter"),
    (r"_custom_diffusion\b", "Custom Diffusion"),
    (
        r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.(?!.*(?:lora|hada_|lokr_|oft_))"
        r".*\.(?:weight|bias)$",
        "no adapter but a whole base model",
    ),
    (r"^(?:encoder|decoder)\.conv_in\.", "no adapter but a VAE"),
    (r"double_stream_modulation", "Flux 2"),
    (r"joint_blocks|context_embedder.*pos_embed|lora_te3_", "Stable Diffusion 3"),
    (r"single_transformer_blocks|double_blocks|single_blocks|guidance_in", "Flux (or Chroma, HunyuanVideo)"),
    (r"transformer_blocks[._]\d+[._](?:img_mlp|txt_mlp|img_mod|txt_mod)", "Qwen-Image"),
    (r"context_refiner|noise_refiner|cap_embedder", "Lumina or Z-Image"),
    (r"blocks[._]\d+[._](?:cross_attn|self_attn)", "a video model (Wan and its kin)"),
    (r"adaln_single|caption_projection", "PixArt, Sana or LTX-Video"),
    (r"joint_transformer_blocks|joint_attn", "AuraFlow or HiDream"),
    (r"transformer_blocks[._]\d+[._]attn[._](?:add_[qk]_proj|to_add_out)", "Stable Diffusion 3 or Flux"),
    (
        r"^(?!.*(?:down_blocks|mid_block|up_blocks|put_blocks|middle_block|text_model|resblocks))(?:.*[._])?transformer[._]",
        "a transformer model (Flux, Stable Diffusion 3, PixArt, ...)",
    ),
    (r"layers[._]\d+[._](?:attention|feed_forward|adaLN)", "Lumina or Z-Image"),
)
# What a file is as a whole; the first that matches is told.
_WHOLES: tuple[tuple[str, str], ...] = (
    (r"(?:^|\.)(?:concept_embeds|special_care_embeds)$", "a safety checker"),
    (r"(?:^|\.)vision_model\.|^visual\.", "an encoder of pictures (CLIP vision)"),
    (r"^(?:adapter\.)?body\.\d+\.(?:resnets\.\d+\.)?block1\.", "a T2I-Adapter"),
    (r"conv_first\.weight$|\.rdb\d\.conv|\.RDB\d\.conv|^upsample\.\d", "an upscaler"),
    (r"^taesd|^(?:decoder\.|encoder\.)?(?:layers\.)?\d+\.conv\.0\.weight$", "a small VAE (TAESD)"),
    (r"^position_net\.|\.fuser\.(?:attn|linear)", "GLIGEN"),
    (r"^(?:first_stage_model\.)?(?:encoder|decoder)\.conv_in\.", "a VAE"),
    (r"(?:^|\.)embeddings\.(?:token|position)_embedding\.", "a text encoder"),
    (r"^conv_in\.weight$|^input_blocks\.0\.0\.weight$", "a UNet"),
)
# What PEFT calls the tensors of its methods beside those that are read: by their beginnings, one is enough.
_PEFT_METHODS = {
    "adamss_": "AdaMSS",
    "beft_": "BEFT",
    "boft_": "BOFT",
    "bone_": "Bone",
    "c3a_": "C3A",
    "deft_": "DEFT",
    "delora_": "DeLoRA",
    "fourierft_": "FourierFT",
    "frod_": "FRoD",
    "glora_[ABCDE]\\b": "GLoRA",
    "gralora_": "GraLoRA",
    "hira_": "HiRA",
    "hra_": "HRA",
    "lily_": "Lily",
    "ln_tuning_": "LN tuning, which holds whole norms and no updates",
    "lora_(?:E\\b|embedding_E\\b)": "AdaLoRA",
    "lora_diag\\b": "KaSA, which takes small parts out of the base's weights",
    "lora_monteclora": "MonteCLoRA",
    "miss_": "MiSS",
    "osf_": "OSF",
    "peanut_": "PEANuT",
    "poly_(?:lora|router)": "Poly",
    "psoft_": "PSOFT",
    "pvera_": "PVeRA",
    "randlora_": "RandLoRA",
    "road_": "RoAd",
    "shira_": "SHiRA",
    "supertuning_": "SuperTuning",
    "tinylora_": "TinyLoRA",
    "trainable_tokens_": "trainable tokens, which stand in the token table",
    "unilora_": "UniLoRA",
    "vblora_": "VB-LoRA",
    "vera_": "VeRA",
    "waveft_": "WaveFT",
    "prompt_embeddings$": "prompt, prefix or P-tuning, which no tool applies to Stable Diffusion",
    "prefix_task_": "multitask prompt tuning",
    "adaption_": "adaption prompt",
    "internal_xlora": "X-LoRA",
}
_ALGORITHMS: tuple[tuple[str, str], ...] = (
    *((rf"(?:^|\.){beginning}", f"PEFT's {name}") for beginning, name in _PEFT_METHODS.items()),
    (r"\.ranknum\b", "PEFT's AdaLoRA"),
    (r"\.(?:p_layer|q_layer|lambda_layer)\b|base_(?:p|q|lambda)", "T-LoRA, whose update depends on the noise"),
    (r"\.oft_diag\b", "an early OFT"),
    (r"^(?:unet|text_encoder):\d+:", "the first LoRA tool's, whose layers have numbers and no names"),
    (r"\.(?:glora|bypass)\b", "an unknown algorithm"),
)
_EMBEDDING = re.compile(r"bundle_emb\.|emb_params$|string_to_param|clip_[lg]$|<[^<>]+>$")
_READ = "Adapters for Stable Diffusion 1.x, 2.x and SDXL are read"
UNKNOWN_LAYER = "a factor of a layer whose name is of no Stable Diffusion model"


def model_of(keys: Iterable[str]) -> str | None:
    """The model, other than Stable Diffusion 1.x, 2.x and SDXL, that tensors of these names are for."""
    keys = list(keys)
    return next((what for pattern, what in _MODELS if any(re.search(pattern, key) for key in keys)), None)


def algorithm_named(keys: Iterable[str]) -> str | None:
    """The algorithm, other than those that are read, that tensors of these names are of."""
    keys = list(keys)
    return next((what for pattern, what in _ALGORITHMS if any(re.search(pattern, key) for key in keys)), None)


def whole_of(keys: Iterable[str]) -> str | None:
    """The part of a model, or other model, that a file with tensors of these names is, of those that have no layers of
    an adapter."""
    keys = list(keys)
    if any(key.startswith(("model.diffusion_model.", "cond_stage_model.", "conditioner.")) for key in keys):
        return None  # a whole base model has all of them
    return next((what for pattern, what in _WHOLES if any(re.search(pattern, key) for key in keys)), None)


def no_adapter(keys: Iterable[str]) -> str | None:
    """What a file with tensors of these names is, that is no adapter which is read: the end of a sentence."""
    keys = list(keys)
    what = model_of(keys)
    if (what is None or what.startswith("no adapter")) and (whole := whole_of(keys)):
        return f"is no adapter but {whole}"
    if what:
        return f"is {what}" if what.startswith("no adapter") else f"is for another model: {what}. {_READ}"
    if what := algorithm_named(keys):
        return f"is of an algorithm that is not read: {what}"
    return None


def shared_encoders(names: Iterable[str], other_keys: Iterable[str]) -> str | None:
    """What a file is that has only layers of text encoders (names, as kohya spells them), which its model shares with
    Stable Diffusion, beside those of another model (keys): the end of a sentence."""
    what = model_of(other_keys) if all(name.startswith("lora_te") for name in names) else None
    if what is None or what.startswith("no adapter"):
        return None
    return f"is for another model: {what}, which has a text encoder of the same build. {_READ}"


def embedding_named(keys: Iterable[str]) -> str | None:
    """The same of a file with an embedding."""
    words = "is an embedding (textual inversion) and has no layers: generate with it by its name in the prompt"
    return words if any(_EMBEDDING.search(key) for key in keys) else None


def unknown_layer(key: str) -> str:
    """Why a factor of an adapter is not read whose layer's name is of no Stable Diffusion model."""
    what = model_of([key])
    return UNKNOWN_LAYER if what is None or what.startswith("no adapter") else f"for another model: {what}"


def unread_part(key: str) -> str:
    """Why a tensor of this name is no part of an adapter that is read."""
    if what := algorithm_named([key]):
        return f"{what} is not read"
    if _EMBEDDING.search(key):
        return "a textual-inversion embedding, which a prompt uses by its name from a file of its own"
    if what := model_of([key]):
        other = what.removeprefix("no adapter but ")
        return f"for another model: {what}" if other == what else f"part of {other}"
    if key.endswith((".bias_indices", ".bias_values", ".bias_size")):
        return "the sparse rest that LyCORIS keeps beside the factors that it extracts, which is not read"
    if key.endswith((".set_weight", ".reshape_weight")):
        return "replaces a whole weight, which is no update"
    if "modules_to_save" in key or key.endswith((".weight", ".bias")):
        return "a whole weight, which is no update"
    return "its name means no part of an adapter"
