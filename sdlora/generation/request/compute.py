"""Where images are calculated, and in which number type."""

from __future__ import annotations

import torch

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import ComputeConfig
from sdlora.models.dtypes import DTYPES


def choose_device(name: str) -> torch.device:
    """The device of that name; auto is the first there is of CUDA, Metal and CPU. Raises ValueError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"compute.device: '{name}' is no device; use cpu, cuda, mps or auto") from None
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not is_there.get(device.type, False):
        raise ValueError(f"compute.device: there is no '{name}' on this machine; use cpu or auto")
    return device


def choose_dtype(base_model: BaseModelConfig, compute: ComputeConfig, device: torch.device) -> torch.dtype:
    """The number type asked for by compute.precision, else by base_model.precision, else what suits the device."""
    for precision in (compute.precision, base_model.precision):
        if precision != "auto":
            return DTYPES[precision]
    if device.type != "cpu":
        # Every card since 2016 has fp16; bf16 came with Ampere, and older ones emulate it slowly.
        return torch.float16
    return torch.bfloat16 if processor_has_bf16() else torch.float32


def processor_has_bf16() -> bool:
    """Whether bf16 is arithmetic of the processor's own: emulated it would be slower than fp32."""
    # Private names, which not every version of torch has.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)
