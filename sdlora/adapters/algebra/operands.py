"""Adapters as operands of a sum: each read, weighted by part and block, and turned into exact updates by layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdlora.adapters.algebra.blocks import block_label, block_weights
from sdlora.adapters.algebra.low_rank import LowRank, from_matrix, from_weights
from sdlora.adapters.files.kohya import canonical, from_ldm
from sdlora.adapters.files.reading import read_all
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights, VectorUpdate
from sdlora.config.base_model import FamilyName
from sdlora.config.mix import MixedAdapter
from sdlora.errors import AdapterError

ASKED_BY_PERSON = "--family"
BaseWeight = Callable[[str], Tensor]
"""Gives the base model's weight of a layer by its kohya name."""

# Kernels by name, for LoHa and LoKr, whose factors are of flattened matrices: 3x3, 1x1, and 1x1 in SD 1.x only.
_KERNEL_3 = re.compile(r"lora_unet_.*(?:_conv1|_conv2|samplers_0_conv|_conv_in|_conv_out)|lora_unet_conv_(?:in|out)")
_KERNEL_1 = re.compile(r"lora_unet_.*_conv_shortcut")
_SD1_KERNEL_1 = re.compile(r"lora_unet_.*_attentions_\d+_proj_(?:in|out)")
_SMALL = 2.0**-8
"""A factor's largest value below which its others may be beyond fp16's normal numbers (2^-14)."""


@dataclass(frozen=True)
class Operand:
    """One adapter as an input of a mix or merge, with what each part of its update is multiplied by."""

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
    adapters: Sequence[MixedAdapter], family: FamilyName | None = None, asked_by: str = ASKED_BY_PERSON
) -> list[Operand]:
    """Read all adapters. family: that they must have, or have when they don't tell; asked_by: what wants it.

    Raises AdapterError (a file can't be read; the families differ, both named; none tells its family) and ConfigError
    (block weights that don't fit).
    """
    # a family that a person gives overrules what the files tell; that of a base model doesn't
    files = read_all([adapter.file for adapter in adapters], family if asked_by == ASKED_BY_PERSON else None)
    common = common_family(files, family, asked_by)
    return [weighted(with_family(file, common), adapter, common) for file, adapter in zip(files, adapters, strict=True)]


def common_family(
    files: Sequence[AdapterFile], family: FamilyName | None = None, asked_by: str = ASKED_BY_PERSON
) -> FamilyName:
    """The one family of all files. Raises AdapterError when they differ or none tells."""
    told: dict[FamilyName, str] = {}
    sure = [file for file in files if not file.family_is_guess]
    for file in files if family is None and not any(one.family for one in sure) else sure:
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
    if file.family == family or (file.family is not None and not file.family_is_guess):
        return file
    named = replace(file, family=family, modules={canonical(name, family): w for name, w in file.modules.items()})
    return replace(named, vectors={canonical(name, family): vector for name, vector in file.vectors.items()})


def layer_update(name: str, weights: ModuleWeights, base_weight: BaseWeight | None, source: str) -> LowRank:
    """A layer's whole update as it acts on the base weight W: dW, or for DoRA m * (W + dW) / ||W + dW|| - W.

    Raises AdapterError for what depends on the base weight (DoRA, OFT, ...) without a base model.
    """
    # In float64 throughout: a sum of many adapters is then exact far beyond any file's number type.
    if weights.needs_base is None:
        return from_weights(weights)
    if base_weight is None:
        raise AdapterError(
            f"{source} is {weights.needs_base}, whose update depends on the base weights; give the model: --base MODEL"
        )
    weight = base_weight(name)
    if not weights.fits(weight.shape):
        raise AdapterError(f"{source}: {name} doesn't fit the base model's layer {list(weight.shape)}")
    return from_matrix(weights.delta_on(weight))


def shapes_of(name: str, layers: Sequence[ModuleWeights], base_weight: BaseWeight | None) -> list[torch.Size]:
    """The shapes of updates of one layer; where the factors don't tell (OFT, IA3), that of the base's weight."""
    told = [shape for layer in layers if (shape := layer.delta_shape) is not None]
    return told or ([base_weight(name).shape] if base_weight is not None else [])


def told(weights: ModuleWeights) -> str:
    """The shape of an update, for messages."""
    shape = weights.delta_shape
    return "for another size" if shape is None else str(list(shape))


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
    update = _balanced(update)
    down_shape = (update.rank, *shape[1:])
    up_shape = (shape[0], update.rank, *[1] * (len(shape) - 2))
    factors = {
        "lora_down": update.down_Ri.reshape(down_shape).float().contiguous(),
        "lora_up": update.up_oR.reshape(up_shape).float().contiguous(),
    }
    # alpha is the rank: with a scale of 1 no loader can misread it.
    return ModuleWeights("lora", factors, float(update.rank))


def _balanced(update: LowRank) -> LowRank:
    """The same product, without factors so small that half precision would round them to few digits or to nothing.

    A scale of 1/128 and a weight of 0.1 stand in one factor. Powers of two move it to the other without rounding.
    """
    up_R, down_R = update.up_oR.abs().amax(0), update.down_Ri.abs().amax(1)
    is_small_R = (torch.minimum(up_R, down_R) < _SMALL) & (up_R > 0) & (down_R > 0)
    exponent_R = torch.where(is_small_R, ((down_R / up_R).log2() / 2).round(), torch.zeros_like(up_R))
    factor_R = torch.exp2(exponent_R)
    return LowRank(update.up_oR * factor_R, update.down_Ri / factor_R[:, None])


def summed_vectors(operands: Sequence[Operand]) -> dict[str, VectorUpdate]:
    """The weighted sum of all operands' updates of biases and norms, by layer."""
    total: dict[str, VectorUpdate] = {}
    for operand in operands:
        for name, vector in operand.file.vectors.items():
            if weight := operand.weight_of(name):
                own = vector.times(weight)
                total[name] = total[name].plus(own) if name in total else own
    return total


def notes_of(files: Sequence[AdapterFile], *, takes_bundles: bool = False) -> list[str]:
    """What is to be said of files that were read: how they were taken, and what of them is not used.

    takes_bundles: whether embeddings that are bundled with them are.
    """
    notes = []
    for file in files:
        told = (*file.notes, file.unused_note(), None if takes_bundles else file.bundle_note())
        notes += [f"{file.path.name}: {note}" for note in told if note]
    paths = [file.path for file in files]
    twice = [path for path in dict.fromkeys(paths) if paths.count(path) > 1]
    notes += [f"{path.name} is there {paths.count(path)} times: its weights add up" for path in twice]
    return list(dict.fromkeys(notes))


def idle_parts(adapter: MixedAdapter, names: Collection[str]) -> list[str]:
    """What is to be said of weights that were given for parts which an adapter with these layers hasn't."""
    parts = (("unet", "lora_unet_"), ("text_encoder", "lora_te"), ("text_encoder_2", "lora_te2_"))
    return [
        f"{name}={getattr(adapter, name):g} has no effect: the adapter has no layers there"
        for name, beginning in parts
        if getattr(adapter, name) is not None and not any(one.startswith(beginning) for one in names)
    ]


def weighted(file: AdapterFile, adapter: MixedAdapter, family: FamilyName) -> Operand:
    """The file with the weights that a user gave it. Raises ConfigError for block weights that don't fit."""
    file = replace(file, notes=(*file.notes, *(idle_parts(adapter, file.layer_names) if file.layer_names else ())))
    text_encoder = adapter.weight if adapter.text_encoder is None else adapter.text_encoder
    return Operand(
        file,
        adapter.weight if adapter.unet is None else adapter.unet,
        text_encoder,
        text_encoder if adapter.text_encoder_2 is None else adapter.text_encoder_2,
        block_weights(adapter.blocks, family, file.path.name),
    )
