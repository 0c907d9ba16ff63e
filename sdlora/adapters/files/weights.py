"""An adapter's weights as plain tensors, apart from any model: what files hold and what is written into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapters.files import formulas
from sdlora.adapters.files.embeddings import Embedding
from sdlora.adapters.files.key_names import ALGORITHM_NAMES, FileAlgorithm
from sdlora.config.base_model import FamilyName
from sdlora.words import count


@dataclass(frozen=True)
class ModuleWeights:
    """The update of one layer in factored form. `delta()` is the update itself, `delta_on(W)` all that is done to W.

    factors, by the names that LyCORIS-aware tools use (r rank, k kernel edge):
      lora  lora_down [r,in(,k,k)], lora_up [out,r(,1,1)], with Tucker lora_mid [r,r,k,k] and lora_down [r,in,1,1]
      loha  hada_w1_a, _w2_a [out,r], hada_w1_b, _w2_b [r,in*k*k]; with Tucker [r,out], [r,in], hada_t1, _t2 [r,r,k,k]
      lokr  lokr_w1 or lokr_w1_a @ lokr_w1_b, lokr_w2 or lokr_w2_a @ lokr_w2_b; with Tucker lokr_t2 [r,r,k,k]
      full  diff [out,in(,k,k)]
    and of updates that depend on the weight they are added to:
      glora a1 [in,r], a2 [r,in], b1 [out,r], b2 [r,in(,k,k)], with Tucker bm
      ia3   ia3 [out] or, with on_input, [in] (LyCORIS); ia3_l [out,1] or [1,in] (PEFT)
      oft   oft_blocks [blocks,n,n], or BOFT's [stages,blocks,n,n], rescale [out,1]; oft_R [blocks,n(n-1)/2], scaled_oft
    """

    algorithm: FileAlgorithm
    factors: Mapping[str, Tensor]
    alpha: float | None
    """Scale is alpha / rank; None means scale 1. Of OFT: the bound of its norm."""
    dora_scale: Tensor | None = None
    """DoRA's magnitude, one value an output [out,1(,1,1)] (or, in old files, an input [1,in(,1,1)])."""

    @property
    def rank(self) -> int:
        """Inner size of the factors; 1 for a LoKr whose two factors are both full. Of OFT: the size of its blocks."""
        if self.algorithm == "lora":
            return self.factors["lora_down"].shape[0]
        if self.algorithm == "loha":
            return self.factors["hada_w1_b"].shape[0]
        if self.algorithm == "full":
            diff = self.factors["diff"]
            return min(diff.shape[0], diff[0].numel())
        if self.algorithm == "glora":
            return self.factors["a2"].shape[0]
        if "oft_blocks" in self.factors:
            return self.factors["oft_blocks"].shape[-1]
        if "oft_R" in self.factors:
            return formulas.oft_block_size(self.factors["oft_R"].shape[1])
        for name in ("lokr_w2_b", "lokr_w1_b"):  # of two ranks, other tools divide by the second
            if name in self.factors:
                return self.factors[name].shape[0]
        return 1

    @property
    def is_full_lokr(self) -> bool:
        """A LoKr without any low-rank factor: every tool ignores its alpha and scales by 1."""
        return self.algorithm == "lokr" and "lokr_w1" in self.factors and "lokr_w2" in self.factors

    @property
    def has_scale(self) -> bool:
        """Whether alpha / rank scales the update."""
        return self.algorithm in ("lora", "loha", "lokr", "glora") and not self.is_full_lokr

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return 1.0 if self.alpha is None or not self.has_scale else self.alpha / self.rank

    @property
    def needs_base(self) -> str | None:
        """The algorithm's name when what it does depends on the weight it is added to (DoRA, OFT, ...), else None."""
        if self.algorithm not in formulas.PRODUCTS:
            return ALGORITHM_NAMES[self.algorithm]
        return None if self.dora_scale is None else "DoRA"

    @property
    def delta_shape(self) -> torch.Size | None:
        """Shape of the update as far as the factors tell, without computing it; None when they don't (IA3, OFT).

        Raises RuntimeError when the factors don't fit each other.
        """
        if self.algorithm == "glora":
            down = self.factors["bm"] if "bm" in self.factors else self.factors["b2"]
            return torch.Size((self.factors["b1"].shape[0], self.factors["b2"].shape[1], *down.shape[2:]))
        if self.algorithm not in formulas.PRODUCTS:
            return None
        # Tensors without data: the very formulas that compute an update tell its shape, at no cost.
        bare = {name: tensor.to("meta") for name, tensor in self.factors.items()}
        return formulas.PRODUCTS[self.algorithm](bare).shape

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether this can be the update of a weight [out, in] or [out, in, k, k]."""
        told = self.delta_shape
        if told is not None:
            # Convolutions' LoHa and LoKr come flattened, so outputs and size are compared, not the shapes.
            return (told[0], told.numel()) == (shape[0], prod(shape))
        if self.algorithm == "oft":
            outputs, width = formulas.oft_width(self.factors)
            return (
                width == shape[0]
                if outputs
                else width in (prod(shape[1:]), shape[1])
                or (len(self.factors["oft_R"]) == 1 and prod(shape[1:]) % width == 0)
            )
        vector = self.factors["ia3_l"] if "ia3_l" in self.factors else self.factors["ia3"]
        on_input = "on_input" in self.factors and bool(self.factors["on_input"])
        if "ia3_l" in self.factors:
            on_input = vector.shape[0] == 1
        return vector.numel() == shape[1 if on_input else 0]

    def delta(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The update of the weight, [out, in] or [out, in, k, k] (LoHa, LoKr of convolutions: [out, in*k*k]).

        DoRA's magnitude needs the base weight and is left out. Not for algorithms that need the weight.
        """
        factors = {name: tensor.to(dtype) for name, tensor in self.factors.items()}
        return formulas.PRODUCTS[self.algorithm](factors) * self.scale

    def delta_on(self, weight: Tensor) -> Tensor:
        """All that is done to a weight, as a matrix [out, in*k*k] in float64: for DoRA m (W + dW) / ||W + dW|| - W."""
        weight = weight.double()
        if self.algorithm in formulas.PRODUCTS:
            delta_oi = self.delta().flatten(1)
        else:
            factors = {name: tensor.double() for name, tensor in self.factors.items()}
            if self.algorithm == "glora":
                delta_oi = formulas.glora(factors, weight).flatten(1) * self.scale
            elif self.algorithm == "ia3":
                delta_oi = formulas.ia3(factors, weight).flatten(1)
            else:
                delta_oi = formulas.oft(factors, weight, self.alpha).flatten(1)
        if self.dora_scale is None:
            return delta_oi
        base_oi = weight.flatten(1)
        return formulas.rescaled(base_oi + delta_oi, self.dora_scale.double(), weight.shape) - base_oi

    def without_tucker(self) -> ModuleWeights:
        """The same LoRA with lora_mid multiplied into lora_down [r,in,k,k]; anything else unchanged."""
        if "lora_mid" not in self.factors:
            return self
        # In half precision this product would round what the file holds exactly.
        precise = torch.promote_types(self.factors["lora_down"].dtype, torch.float32)
        down = formulas.joined_down(self.factors["lora_down"].to(precise), self.factors["lora_mid"].to(precise))
        return replace(self, factors={"lora_down": down, "lora_up": self.factors["lora_up"]})


@dataclass(frozen=True)
class VectorUpdate:
    """What is added to a norm's weight [features], and to the bias of any layer [outputs]."""

    weight: Tensor | None = None
    bias: Tensor | None = None

    def times(self, factor: float) -> VectorUpdate:
        """Both multiplied by a number, in float64."""
        return VectorUpdate(*(None if one is None else one.double() * factor for one in (self.weight, self.bias)))

    def plus(self, other: VectorUpdate) -> VectorUpdate:
        """The sum of two updates of one layer."""
        return VectorUpdate(_sum(self.weight, other.weight), _sum(self.bias, other.bias))

    def to(self, device: torch.device, dtype: torch.dtype) -> VectorUpdate:
        """The same on another device or in another number type."""
        return VectorUpdate(*(None if one is None else one.to(device, dtype) for one in (self.weight, self.bias)))

    @property
    def tensors(self) -> list[Tensor]:
        """Those of the two that are not None, the weight first."""
        return [tensor for tensor in (self.weight, self.bias) if tensor is not None]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds: every tensor is in `modules`, in `vectors`, or named in `left_out`."""

    path: Path
    format: str
    """Whose names it has: kohya, diffusers, peft, comfyui, original, or several of them."""
    family: FamilyName | None
    """Stable Diffusion family; None when neither names, shapes nor metadata tell."""
    modules: dict[str, ModuleWeights]
    """By kohya name as this package writes it (SDXL: LDM spelling), whatever spelling the file has."""
    metadata: dict[str, str]
    model_hash: str = ""
    """sha256 of all bytes behind the header (kohya's sshs_model_hash); its first 12 letters are the AutoV3 hash."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Names of tensors that are not used, with the reason."""
    notes: tuple[str, ...] = field(default=())
    """Remarks worth telling the user."""
    vectors: dict[str, VectorUpdate] = field(default_factory=dict)
    """Updates of biases and norms, by kohya name."""
    family_is_guess: bool = False
    """Whether other families fit as well, so that a base model's or a person's word goes before it."""
    embeddings: dict[str, Embedding] = field(default_factory=dict)
    """Textual-inversion embeddings bundled with it, by the name that a prompt uses."""

    @property
    def algorithms(self) -> tuple[FileAlgorithm, ...]:
        """The algorithms in use, each once."""
        return tuple(dict.fromkeys(module.algorithm for module in self.modules.values()))

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the tensors that are not used."""
        return tuple(self.left_out)

    @property
    def layer_names(self) -> list[str]:
        """Kohya names of all layers whose weight, bias or norm it changes, each once."""
        return list(dict.fromkeys([*self.modules, *self.vectors]))

    def bundle_note(self) -> str | None:
        """A sentence about the embeddings that are bundled with it, which what is made of it hasn't; None without."""
        if not self.embeddings:
            return None
        words = "is" if len(self.embeddings) == 1 else "are"
        names = ", ".join(self.embeddings)
        return f"{count(len(self.embeddings), 'embedding')} bundled with it {words} not taken over: {names}"

    def unused_note(self) -> str | None:
        """A sentence with the number of tensors that are not used, why, and the first of them; None without any."""
        if not self.left_out:
            return None
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        told = [
            f"{len(names)} ({reason}): {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for reason, names in reasons.items()
        ]
        verb = "is" if len(self.left_out) == 1 else "are"
        return f"{count(len(self.left_out), 'tensor')} {verb} not used: {'; '.join(told)}"
