"""Adapters as operands of a sum: each read, weighted by part and block, and turned into exact updates by layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdlora.adapters.algebra.blocks import block_label, block_weights
from sdlora.adapters.algebra.low_rank import LowRank, from_matrix, from_weights
from sdlora.adapters.files.kohya import canonical, from_ldm
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights
from sdlora.config.base_model import FamilyName
from sdlora.config.mix import MixedAdapter
from sdlora.errors import AdapterError

BaseWeight = Callable[[str], Tensor]
"""Gives the base model's weight of a layer by its kohya name."""

_KERNEL_3 = re.compile(r"lora_unet_.*(?:_conv1|_conv2|samplers_0_conv|_conv_in|_conv_out)|lora_unet_conv_(?:in|out)")
_KERNEL_1 = re.compile(r"lora_unet_.*_conv_shortcut")
_SD1_KERNEL_1 = re.compile(r"lora_unet_.*_attentions_\d+_proj_(?:in|out)")


@dataclass(frozen=True)
class Operand:
    """One adapter with its weights."""

    file: AdapterFile
    unet: float = 1.0
    text_encoder: float = 1.0
    text_encoder_2: float = 1.0
    blocks: Mapping[str, float] | None = None
    """Weight by block label, on top of the part's weight; blocks left out have weight 1."""

    def weight_of(self, name: str) -> float:
        """What the update of a module (kohya name) is multiplied by."""
        if name.startswith("lora_te2_"):
            part = self.text_encoder_2
        else:
            part = self.text_encoder if name.startswith("lora_te") else self.unet
        return part * (self.blocks or {}).get(block_label(name), 1.0)


def load_operands(
    adapters: Sequence[MixedAdapter], family: FamilyName | None = None, asked_by: str = "--family"
) -> list[Operand]:
    """Read all adapters. family: that they must have, or have when they don't tell; asked_by: what wants it.

    Raises AdapterError (a file can't be read; the families differ, both named; none tells its family) and ConfigError
    (block weights that don't fit).
    """
    files = [read(adapter.file) for adapter in adapters]
    common = common_family(files, family, asked_by)
    return [weighted(with_family(file, common), adapter, common) for file, adapter in zip(files, adapters, strict=True)]


def common_family(
    files: Sequence[AdapterFile], family: FamilyName | None = None, asked_by: str = "--family"
) -> FamilyName:
    """The one family of all files. Raises AdapterError when they differ or none tells."""
    told: dict[FamilyName, str] = {}
    for file in files:
        if file.family is not None:
            told.setdefault(file.family, f"{file.path.name} is for {file.family}")
    if family is not None:
        told.setdefault(family, f"{asked_by} is {family}")
    if len(told) > 1:
        raise AdapterError(f"different families can't be put together: {', '.join(told.values())}")
    if not told:
        raise AdapterError(f"{files[0].path.name} doesn't tell its Stable Diffusion family; give it: --family sd1")
    return next(iter(told))


def with_family(file: AdapterFile, family: FamilyName) -> AdapterFile:
    """The file with the names of this family; unchanged when it knew it."""
    if file.family is not None:
        return file
    return replace(file, family=family, modules={canonical(name, family): w for name, w in file.modules.items()})


def layer_update(name: str, weights: ModuleWeights, base_weight: BaseWeight | None, source: str) -> LowRank:
    """A layer's whole update as it acts on the base weight W: dW, or for DoRA m * (W + dW) / ||W + dW|| - W.

    Raises AdapterError for DoRA without a base model.
    """
    # In float64 throughout: a sum of many adapters is then exact far beyond any file's number type.
    update = from_weights(weights)
    if weights.dora_scale is None:
        return update
    if base_weight is None:
        raise AdapterError(f"{source} is DoRA, whose update depends on the base weights; give the model: --base MODEL")
    base_oi = base_weight(name).double().flatten(1)
    tuned_oi = base_oi + update.matrix()
    return from_matrix(_rescaled(tuned_oi, weights.dora_scale.double(), base_weight(name).shape) - base_oi)


def weight_shape(name: str, shapes: Sequence[torch.Size], family: FamilyName) -> torch.Size:
    """The shape [out, in] or [out, in, k, k] of a layer's weight, as kohya's tools expect its factors.

    shapes: of the updates given for it; LoHa's and LoKr's don't tell a convolution's kernel, then the name does.
    Raises AdapterError when they are of layers of different size.
    """
    sizes = {(shape[0], shape[1:].numel()) for shape in shapes}
    if len(sizes) > 1:
        listed = " and ".join(str(list(shape)) for shape in shapes)
        raise AdapterError(f"{name}: the adapters are for layers of different shapes, {listed}")
    for shape in shapes:
        if len(shape) == 4:
            return shape
    ((rows, columns),) = sizes
    plain = "lora_unet_" + from_ldm(name.removeprefix("lora_unet_"))
    if _KERNEL_3.fullmatch(plain) and columns % 9 == 0:
        return torch.Size((rows, columns // 9, 3, 3))
    if _KERNEL_1.fullmatch(plain) or (family == "sd1" and _SD1_KERNEL_1.fullmatch(plain)):
        return torch.Size((rows, columns, 1, 1))
    return torch.Size((rows, columns))


def as_lora(update: LowRank, shape: torch.Size) -> ModuleWeights:
    """An update as a LoRA layer of scale 1, in fp32."""
    down_shape = (update.rank, *shape[1:])
    up_shape = (shape[0], update.rank, *[1] * (len(shape) - 2))
    factors = {
        "lora_down": update.down_Ri.reshape(down_shape).float().contiguous(),
        "lora_up": update.up_oR.reshape(up_shape).float().contiguous(),
    }
    return ModuleWeights("lora", factors, float(update.rank))


def weighted(file: AdapterFile, adapter: MixedAdapter, family: FamilyName) -> Operand:
    """The file with the weights that a user gave it. Raises ConfigError for block weights that don't fit."""
    text_encoder = adapter.weight if adapter.text_encoder is None else adapter.text_encoder
    return Operand(
        file,
        adapter.weight if adapter.unet is None else adapter.unet,
        text_encoder,
        text_encoder if adapter.text_encoder_2 is None else adapter.text_encoder_2,
        block_weights(adapter.blocks, family, file.path.name),
    )


def _rescaled(tuned_oi: Tensor, magnitude: Tensor, shape: torch.Size) -> Tensor:
    """The tuned weight with the magnitude's norm for every output, or (old files) for every input."""
    if magnitude.shape[0] == tuned_oi.shape[0] and magnitude.numel() == tuned_oi.shape[0]:
        return tuned_oi * (magnitude.reshape(-1, 1) / tuned_oi.norm(dim=1, keepdim=True))
    tuned = tuned_oi.reshape(shape[0], shape[1], -1)
    norm_i = tuned.transpose(0, 1).flatten(1).norm(dim=1)
    return (tuned * (magnitude.reshape(-1) / norm_i)[None, :, None]).flatten(1)
