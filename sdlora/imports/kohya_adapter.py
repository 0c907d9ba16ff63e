"""The adapter of kohya_ss and sd-scripts in our terms: its kind, layers, ranks and alphas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdlora.config.adapter import LAYER_SETS, REGEX_PREFIX
from sdlora.imports.translation import Translation, alpha, count, number, refuse_other_model, some, switch

_LORA_TYPES = {
    "standard": ("lora", "all"),
    "locon": ("lora", "all+conv"),
    "kohya locon": ("lora", "all+conv"),
    "lycoris/locon": ("lora", "all+conv"),
    "lycoris/loha": ("loha", "all+conv"),
    "lycoris/lokr": ("lokr", "all+conv"),
}
_LYCORIS_PRESETS = {
    "full": None,
    "full-lin": "all",
    "attn-mlp": "all",
    "attn-only": "attention",
    "unet-transformer-only": "all",
    "unet-convblock-only": rf"{REGEX_PREFIX}(resnets|downsamplers|upsamplers)\.",
}
_LARGEST_RANK = 1024
_SIZES = {"network_dim", "network_alpha", "conv_dim", "conv_alpha", "full_matrix"}


def adapter_kind(settings: Mapping[str, Any], result: Translation) -> set[str]:
    kind = str(settings.get("LoRA_type", "Standard"))
    refuse_other_model(kind)
    if kind.lower() not in _LORA_TYPES:
        result.change("LoRA_type", kind, "has no counterpart, so a plain LoRA is trained")
    # Other kinds of LyCORIS adapt convolutions as well.
    nearest = "lycoris/locon" if kind.lower().startswith("lycoris") else "standard"
    algorithm, layers = _LORA_TYPES.get(kind.lower(), _LORA_TYPES[nearest])
    if layers == "all+conv" and settings.get("conv_dim") in (0, "0"):
        layers = "all"
    preset, is_lycoris = settings.get("LyCORIS_preset"), kind.lower().startswith(("lycoris", "locon"))
    if preset and is_lycoris and str(preset) not in _LYCORIS_PRESETS:
        result.lose("LyCORIS_preset", preset, "set adapter.layers")
    elif preset and is_lycoris:
        layers = _LYCORIS_PRESETS[str(preset)] or layers
        result.put("adapter.text_encoder_layers", "attention" if preset == "attn-only" else None)
    result.put("adapter.algorithm", algorithm)
    result.put("adapter.layers", layers)
    _leave_out_of_other_kinds(result, algorithm, is_lycoris)
    for name in ("rank_dropout", "module_dropout"):
        if (share := some(settings.get(name))) is None:
            continue
        if algorithm == "lora":
            result.put(f"adapter.{name}", share)
        elif name == "rank_dropout" and "adapter.dropout" not in result.values:
            result.put("adapter.dropout", share)
        else:
            result.lose(name, share, f"{algorithm} has one dropout here, adapter.dropout")
    return {"LoRA_type", "LyCORIS_preset", "rank_dropout", "module_dropout"}


def _leave_out_of_other_kinds(result: Translation, algorithm: str, is_lycoris: bool) -> None:
    """Settings that the window keeps from another kind of adapter, without effect there; and what ours can't do."""
    if algorithm != "lokr":
        for name in ("lokr_decompose_both", "lokr_factor"):
            result.values.pop(f"adapter.{name}", None)
    if not is_lycoris:
        for name in ("tucker", "dora"):
            result.values.pop(f"adapter.{name}", None)
    elif algorithm == "lora":
        result.drop("adapter.tucker", "goes with loha and lokr only")
    elif result.values["adapter.layers"] in LAYER_SETS[:-1]:
        result.values.pop("adapter.tucker", None)  # of convolutions
    if algorithm != "lora":
        result.drop("adapter.dropout", f"{algorithm} has no such dropout there either; adapter.dropout leaves out rows")


def ranks(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """Ranks and alphas: an alpha of 0 means the rank, a LoKr of more than any layer holds is a full matrix."""
    is_lokr = result.values.get("adapter.algorithm") == "lokr"
    if is_lokr and switch(settings.get("full_matrix")):
        # Of whatever rank and alpha: the scale of a whole matrix is 1 there as well.
        result.put("adapter.lokr_full", True)
        result.values.pop("adapter.lokr_decompose_both", None)
        return _SIZES
    for rank_name, alpha_name, ours in (("network_dim", "network_alpha", ""), ("conv_dim", "conv_alpha", "conv_")):
        rank = count(settings.get(rank_name))
        given = number(settings.get(alpha_name))
        if ours and result.values.get("adapter.layers") in LAYER_SETS[:-1]:
            result.pass_over(settings, {rank_name, alpha_name})
            continue
        if rank and rank > _LARGEST_RANK and is_lokr and not ours:
            result.put("adapter.lokr_full", True)
            result.values.pop("adapter.lokr_decompose_both", None)  # no rank is below such a one
            result.change(rank_name, rank, "stands for a full matrix: adapter.lokr_full, whose scale is always 1")
            continue
        if ours and result.values.get("adapter.lokr_full"):
            if rank and rank <= _LARGEST_RANK:
                result.change(rank_name, rank, "adapter.lokr_full holds for all layers, convolutions too")
            continue
        if rank and rank > _LARGEST_RANK and is_lokr:
            given = float(_LARGEST_RANK)  # a full matrix there, whose scale is 1
        if rank and rank > _LARGEST_RANK:
            result.change(rank_name, rank, f"the largest rank is {_LARGEST_RANK}")
            rank = _LARGEST_RANK
        result.put(f"adapter.{ours}rank", rank)
        if given == 0 and rank:
            result.change(alpha_name, 0, f"means the rank there, {rank}")
        has_default = not ours or str(settings.get("LoRA_type")).lower() == "kohya locon"
        result.put(f"adapter.{ours}alpha", alpha(given, rank, 1.0 if has_default else None))
    return _SIZES
