"""Random adapter files for a base model, in kohya's layout, made without training and without PEFT."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters.algebra.base_weights import open_base

ATTENTION = r".*_attn[12]_to_(q|k|v|out_0)"
CONVOLUTIONS = r".*_resnets_0_(conv1|conv_shortcut)|.*_downsamplers_0_conv"
TEXT = r"lora_te.*_self_attn_(q|v|out)_proj"
EVERYTHING = f"{ATTENTION}|{CONVOLUTIONS}|{TEXT}|.*_proj_in|.*_time_emb_proj"


def random_adapter(
    model: Path | str,
    file: Path,
    *,
    layers: str = EVERYTHING,
    algorithm: str = "lora",
    rank: int = 4,
    seed: int = 0,
    size: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """An adapter with updates of about `size` times the weights' own norm. algorithm: lora, dora, loha or lokr."""
    base = open_base(str(model))
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name in sorted(base.places):
        if re.fullmatch(layers, name):
            weight = base.weight(name).float()
            for factor, tensor in _factors(weight, algorithm, rank, size, generator).items():
                tensors[f"{name}.{factor}"] = tensor.to(dtype).contiguous()
    family = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[base.family]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"ss_base_model_version": family, "ss_output_name": file.stem})
    return file


def _factors(weight: Tensor, algorithm: str, rank: int, size: float, generator: torch.Generator) -> dict[str, Tensor]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    outputs, inputs = weight.shape[0], weight[0].numel()
    typical = size * weight.std()
    alpha = torch.tensor(rank / 2.0)  # a scale of 0.5
    if algorithm == "loha":
        factor = (2 * typical / rank) ** 0.25
        names = {"hada_w1_a": outputs, "hada_w2_a": outputs}
        halves = {name: factor * random(length, rank) for name, length in names.items()}
        return {
            **halves,
            **{name: factor * random(rank, inputs) for name in ("hada_w1_b", "hada_w2_b")},
            "alpha": alpha,
        }
    if algorithm == "lokr":
        first = next(number for number in (4, 2, 1) if outputs % number == 0 and inputs % number == 0)
        return {
            "lokr_w1": random(first, first),
            "lokr_w2_a": typical * random(outputs // first, rank),
            "lokr_w2_b": random(rank, inputs // first),
            "alpha": alpha,
        }
    ones = [1] * (weight.ndim - 2)
    factors = {
        "lora_down.weight": random(rank, *weight.shape[1:]),
        "lora_up.weight": 2 * typical / rank**0.5 * random(outputs, rank, *ones),
        "alpha": alpha,
    }
    if algorithm == "dora":
        norm = weight.flatten(1).norm(dim=1)
        factors["dora_scale"] = (norm * (1 + 0.1 * random(outputs))).reshape(outputs, 1, *ones)
    return factors
