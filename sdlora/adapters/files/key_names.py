"""The tensor names of adapter files, sorted by layer: kohya's, diffusers'/PEFT's, old attention processors'.

Pure string maps: a library of a thousand files is described from their headers, without torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sdlora.config.adapter import Algorithm

Format = Literal["kohya", "diffusers"]

LORA_FACTORS = ("lora_down", "lora_up", "lora_mid")
LOHA_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR_FACTORS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

_KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_KOHYA_FACTORS = {
    **{f"{name}.weight": name for name in LORA_FACTORS},
    **{name: name for name in (*LOHA_FACTORS, *LOKR_FACTORS)},
    "lora_A.weight": "lora_down",
    "lora_B.weight": "lora_up",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
}

_OLD_PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.")
_DIFFUSERS_KEY = re.compile(
    r"(?P<path>.+?)\.(?P<factor>lora_A|lora_B|lora\.down|lora\.up|lora_magnitude_vector|alpha|dora_scale"
    r"|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?)(?:\.default)?(?:\.weight)?"
)
_DIFFUSERS_FACTORS = {
    "lora_A": "lora_down",
    "lora.down": "lora_down",
    "lora_B": "lora_up",
    "lora.up": "lora_up",
    "lora_magnitude_vector": "dora_scale",
}


@dataclass(frozen=True)
class LayerKeys:
    """Which tensors of a file belong to which layer."""

    file_format: Format
    layers: dict[str, dict[str, str]]
    """Layer by kohya-like name (diffusers' files keep diffusers' spelling) to factor name to the tensor's own name."""
    unused: list[str]
    """Names that mean no part of an adapter."""


def by_layer(keys: Iterable[str]) -> LayerKeys:
    """Sort the tensor names of a file; every one of them is in `layers` or in `unused`."""
    keys = list(keys)
    is_kohya = any(key.startswith(_KOHYA_PREFIXES) for key in keys)
    grouped: dict[str, dict[str, str]] = defaultdict(dict)
    unused: list[str] = []
    for key in keys:
        place = (_kohya_place if is_kohya else _diffusers_place)(key)
        if place is None:
            unused.append(key)
        else:
            name, factor = place
            grouped[name][factor] = key
    # Alphas (of .diff tensors and the like) that belong to no factor are unused, not an error.
    for name in [name for name, given in grouped.items() if given.keys() <= {"alpha", "dora_scale"}]:
        unused += grouped.pop(name).values()
    return LayerKeys("kohya" if is_kohya else "diffusers", dict(grouped), unused)


def algorithm_of(factors: Iterable[str]) -> Algorithm:
    """LoRA, LoHa or LoKr, by the names of a layer's factors."""
    names = list(factors)
    if "lora_down" in names or "lora_up" in names:
        return "lora"
    return "lokr" if any(name.startswith("lokr_") for name in names) else "loha"


def _kohya_place(key: str) -> tuple[str, str] | None:
    name, _, rest = key.partition(".")
    return (name, _KOHYA_FACTORS[rest]) if name.startswith(_KOHYA_PREFIXES) and rest in _KOHYA_FACTORS else None


def _diffusers_place(key: str) -> tuple[str, str] | None:
    plain = _OLD_PROCESSOR.sub(lambda m: f".{m[1]}{'.0' if m[1] == 'to_out' else ''}.lora.", key)
    plain = plain.replace(".lora_linear_layer.", ".lora.").removeprefix("base_model.model.")
    match = _DIFFUSERS_KEY.fullmatch(plain)
    name = _kohya_like(match["path"]) if match else None
    if match is None or name is None:
        return None
    return name, _DIFFUSERS_FACTORS.get(match["factor"], match["factor"])


def _kohya_like(path: str) -> str | None:
    """lora_unet_down_blocks_0_... from unet.down_blocks.0...; None when this is no part of a Stable Diffusion."""
    for part, start in (("text_encoder_2", "lora_te2"), ("text_encoder", "lora_te"), ("unet", "lora_unet")):
        if path.startswith(f"{part}."):
            return f"{start}_{path.removeprefix(f'{part}.').replace('.', '_')}"
    if path.startswith(("down_blocks.", "mid_block.", "up_blocks.")):
        return f"lora_unet_{path.replace('.', '_')}"
    if path.startswith("text_model."):
        return f"lora_te_{path.replace('.', '_')}"
    return None
