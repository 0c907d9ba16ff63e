"""An adapter's weights as plain tensors, apart from any model: what files hold and what is written into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapters.files.key_names import Format
from sdlora.config.adapter import Algorithm
from sdlora.config.base_model import FamilyName


@dataclass(frozen=True)
class ModuleWeights:
    """The update of one layer in factored form. `delta()` is the update itself.

    factors, by the names that LyCORIS-aware tools use (r rank, k kernel edge):
      lora  lora_down [r,in(,k,k)], lora_up [out,r(,1,1)], with Tucker lora_mid [r,r,k,k] and lora_down [r,in,1,1]
      loha  hada_w1_a, _w2_a [out,r], hada_w1_b, _w2_b [r,in*k*k]; with Tucker [r,out], [r,in], hada_t1, _t2 [r,r,k,k]
      lokr  lokr_w1 or lokr_w1_a @ lokr_w1_b, lokr_w2 or lokr_w2_a @ lokr_w2_b; with Tucker lokr_t2 [r,r,k,k]
    """

    algorithm: Algorithm
    factors: Mapping[str, Tensor]
    alpha: float | None
    """Scale is alpha / rank; None means scale 1."""
    dora_scale: Tensor | None = None
    """DoRA's magnitude, one value an output [out,1(,1,1)] (or, in old files, an input [1,in(,1,1)])."""

    @property
    def rank(self) -> int:
        """Inner size of the factors; 1 for a LoKr whose two factors are both full."""
        if self.algorithm == "lora":
            return self.factors["lora_down"].shape[0]
        if self.algorithm == "loha":
            return self.factors["hada_w1_b"].shape[0]
        for name in ("lokr_w1_b", "lokr_w2_b"):
            if name in self.factors:
                return self.factors[name].shape[0]
        return 1

    @property
    def is_full_lokr(self) -> bool:
        """A LoKr without any low-rank factor: every tool ignores its alpha and scales by 1."""
        return self.algorithm == "lokr" and "lokr_w1" in self.factors and "lokr_w2" in self.factors

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return 1.0 if self.alpha is None or self.is_full_lokr else self.alpha / self.rank

    @property
    def delta_shape(self) -> torch.Size:
        """Shape of `delta()`, without computing it. Raises RuntimeError when the factors don't fit each other."""
        return (
            ModuleWeights(self.algorithm, {name: tensor.to("meta") for name, tensor in self.factors.items()}, None)
            .delta()
            .shape
        )

    def delta(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The update of the weight, [out, in] or [out, in, k, k] (LoHa, LoKr of convolutions: [out, in*k*k]).

        DoRA's magnitude needs the base weight and is left out.
        """
        factors = {name: tensor.to(dtype) for name, tensor in self.factors.items()}
        return _PRODUCTS[self.algorithm](factors) * self.scale

    def without_tucker(self) -> ModuleWeights:
        """The same LoRA with lora_mid multiplied into lora_down [r,in,k,k]; anything else unchanged."""
        if "lora_mid" not in self.factors:
            return self
        precise = torch.promote_types(self.factors["lora_down"].dtype, torch.float32)
        down = _joined_down(self.factors["lora_down"].to(precise), self.factors["lora_mid"].to(precise))
        factors = {"lora_down": down, "lora_up": self.factors["lora_up"]}
        return ModuleWeights(self.algorithm, factors, self.alpha, self.dora_scale)


def _joined_down(down: Tensor, mid: Tensor) -> Tensor:
    return torch.einsum("rsxy,si->rixy", mid, down.flatten(1))


def _lora_product(factors: Mapping[str, Tensor]) -> Tensor:
    down, up = factors["lora_down"], factors["lora_up"]
    if "lora_mid" in factors:
        down = _joined_down(down, factors["lora_mid"])
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _loha_product(factors: Mapping[str, Tensor]) -> Tensor:
    if "hada_t1" in factors:
        first, second = (
            torch.einsum("rsxy,ro,si->oixy", factors[f"hada_t{i}"], factors[f"hada_w{i}_a"], factors[f"hada_w{i}_b"])
            for i in (1, 2)
        )
        return first * second
    return (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"])


def _lokr_product(factors: Mapping[str, Tensor]) -> Tensor:
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        second = factors["lokr_w2"]
    elif "lokr_t2" in factors:
        second = torch.einsum("rsxy,ro,si->oixy", factors["lokr_t2"], factors["lokr_w2_a"], factors["lokr_w2_b"])
    else:
        second = factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())


_PRODUCTS = {"lora": _lora_product, "loha": _loha_product, "lokr": _lokr_product}


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds: every tensor is in `modules` or named in `unused`."""

    path: Path
    format: Format
    family: FamilyName | None
    """Stable Diffusion family; None when neither names, shapes nor metadata tell."""
    modules: dict[str, ModuleWeights]
    """By kohya name as this package writes it (SDXL: LDM spelling), whatever spelling the file has."""
    metadata: dict[str, str]
    model_hash: str = ""
    """sha256 of all bytes behind the header (kohya's sshs_model_hash); its first 12 letters are the AutoV3 hash."""
    unused: tuple[str, ...] = ()
    """Keys of tensors that are not understood."""
    notes: tuple[str, ...] = field(default=())
    """Remarks worth telling the user."""

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """The algorithms in use, each once."""
        return tuple(dict.fromkeys(module.algorithm for module in self.modules.values()))
