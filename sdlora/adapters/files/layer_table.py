"""Every layer of the three families by kohya name, with the size of its weight: what a name in a file can mean at all.

Pure arithmetic on the families' published widths; no model and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from sdlora.adapters.files.kohya import PARTS, TEXT_MODEL, TEXT_PROJECTION, Part, canonical, kohya_name
from sdlora.config.base_model import FamilyName

Kind = Literal["linear", "convolution", "norm"]

# Four times the width of the first level, which is 320 in all three families.
_TIME_WIDTH = 1280


@dataclass(frozen=True)
class Layer:
    """A layer of a model. Its weight as a matrix has `rows` outputs and `columns` inputs times kernel elements."""

    part: Part
    path: str
    kind: Kind
    rows: int
    columns: int


@dataclass(frozen=True)
class _Unet:
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    """Transformer blocks by level; 0 for levels without attention."""
    text_width: int
    projects_with: Kind
    condition_width: int | None
    """Inputs of the size embedding, which only SDXL has."""


@dataclass(frozen=True)
class _Text:
    width: int
    layers: int
    projected: bool = False


_UNETS: dict[FamilyName, _Unet] = {
    "sd1": _Unet((320, 640, 1280, 1280), (1, 1, 1, 0), 768, "convolution", None),
    "sd2": _Unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, "linear", None),
    # 2816: SDXL's pooled text of 1280 and six numbers of size and crop, 256 values each.
    "sdxl": _Unet((320, 640, 1280), (0, 2, 10), 2048, "linear", 2816),
}
_TEXTS: dict[FamilyName, tuple[_Text, ...]] = {
    "sd1": (_Text(768, 12),),
    "sd2": (_Text(1024, 24),),  # the last of them unused, but in files
    "sdxl": (_Text(768, 12), _Text(1280, 32, projected=True)),
}
FAMILY_NAMES: tuple[FamilyName, ...] = ("sd1", "sd2", "sdxl")


@cache
def layers(family: FamilyName) -> Mapping[str, Layer]:
    """All layers of a family: linear layers, convolutions and norms, by kohya name as this package writes it."""
    found = [*_unet(_UNETS[family])]
    for part, text in zip(PARTS[1:], _TEXTS[family], strict=False):
        found += _text(part, text)
    return {kohya_name(layer.part, layer.path, family): layer for layer in found}


@cache
def possible_layers(family: FamilyName) -> Mapping[str, Layer]:
    """`layers` and those that a model of the family's build has when its levels are of other widths or depths.

    Pruned and reshaped models (BK-SDM, the embedded base) have attention and shortcuts where the published one has
    none. The sizes of these further layers mean nothing.
    """
    unet = _UNETS[family]
    found = [*_unet(replace(unet, depths=(max(unet.depths),) * len(unet.depths)))]
    found += [
        replace(layer, path=f"{layer.path.removesuffix('conv1')}conv_shortcut")
        for layer in found
        if layer.path.endswith(".conv1")
    ]
    return {kohya_name(layer.part, layer.path, family): layer for layer in found} | dict(layers(family))


def kinds(name: str, family: FamilyName | None) -> set[Kind]:
    """What a layer is, by kohya name; without a family: in any of them."""
    families = FAMILY_NAMES if family is None else (family,)
    found = [possible_layers(each).get(canonical(name, each)) for each in families]
    return {layer.kind for layer in found if layer is not None}


def is_norm(name: str, family: FamilyName | None) -> bool:
    """Whether a layer, by kohya name, is a norm."""
    return "norm" in kinds(name, family)


def _unet(unet: _Unet) -> Iterator[Layer]:
    first, last = unet.widths[0], unet.widths[-1]
    yield Layer("unet", "conv_in", "convolution", first, 4 * 9)
    yield from _linears("", {"time_embedding.linear_1": (_TIME_WIDTH, first)})
    yield from _linears("", {"time_embedding.linear_2": (_TIME_WIDTH, _TIME_WIDTH)})
    if unet.condition_width is not None:
        yield from _linears("", {"add_embedding.linear_1": (_TIME_WIDTH, unet.condition_width)})
        yield from _linears("", {"add_embedding.linear_2": (_TIME_WIDTH, _TIME_WIDTH)})
    before = first
    for level, (width, depth) in enumerate(zip(unet.widths, unet.depths, strict=True)):
        block = f"down_blocks.{level}."
        for index in range(2):
            yield from _resnet(f"{block}resnets.{index}.", before, width)
            yield from _attention(f"{block}attentions.{index}.", width, depth, unet)
            before = width
        if level < len(unet.widths) - 1:
            yield Layer("unet", f"{block}downsamplers.0.conv", "convolution", width, width * 9)
    # The middle block attends even where the lowest level beside it (SD 1.x, 2.x) does not.
    for index in range(2):
        yield from _resnet(f"mid_block.resnets.{index}.", last, last)
    yield from _attention("mid_block.attentions.0.", last, max(1, unet.depths[-1]), unet)
    upwards = list(zip(unet.widths, unet.depths, strict=True))[::-1]
    for level, (width, depth) in enumerate(upwards):
        block = f"up_blocks.{level}."
        skipped = upwards[min(level + 1, len(upwards) - 1)][0]
        for index in range(3):
            # The third skip comes out of the next finer level's downsampler (at the finest level: out of conv_in).
            inputs = before + (skipped if index == 2 else width)
            yield from _resnet(f"{block}resnets.{index}.", inputs, width)
            yield from _attention(f"{block}attentions.{index}.", width, depth, unet)
            before = width
        if level < len(upwards) - 1:
            yield Layer("unet", f"{block}upsamplers.0.conv", "convolution", width, width * 9)
    yield Layer("unet", "conv_norm_out", "norm", first, 1)
    yield Layer("unet", "conv_out", "convolution", 4, first * 9)


def _resnet(start: str, inputs: int, outputs: int) -> Iterator[Layer]:
    yield Layer("unet", f"{start}norm1", "norm", inputs, 1)
    yield Layer("unet", f"{start}conv1", "convolution", outputs, inputs * 9)
    yield from _linears(start, {"time_emb_proj": (outputs, _TIME_WIDTH)})
    yield Layer("unet", f"{start}norm2", "norm", outputs, 1)
    yield Layer("unet", f"{start}conv2", "convolution", outputs, outputs * 9)
    if inputs != outputs:
        yield Layer("unet", f"{start}conv_shortcut", "convolution", outputs, inputs)


def _attention(start: str, width: int, depth: int, unet: _Unet) -> Iterator[Layer]:
    if depth == 0:
        return
    yield Layer("unet", f"{start}norm", "norm", width, 1)
    for name in ("proj_in", "proj_out"):
        yield Layer("unet", f"{start}{name}", unet.projects_with, width, width)
    square, cross = (width, width), (width, unet.text_width)
    for index in range(depth):
        block = f"{start}transformer_blocks.{index}."
        for norm in ("norm1", "norm2", "norm3"):
            yield Layer("unet", f"{block}{norm}", "norm", width, 1)
        yield from _linears(f"{block}attn1.", {"to_q": square, "to_k": square, "to_v": square, "to_out.0": square})
        yield from _linears(f"{block}attn2.", {"to_q": square, "to_k": cross, "to_v": cross, "to_out.0": square})
        # GEGLU's inner width is four times the outer, and made twice: one half gates the other.
        yield from _linears(f"{block}ff.net.", {"0.proj": (8 * width, width), "2": (width, 4 * width)})


def _linears(start: str, sizes: Mapping[str, tuple[int, int]], part: Part = "unet") -> Iterator[Layer]:
    for name, (rows, columns) in sizes.items():
        yield Layer(part, start + name, "linear", rows, columns)


def _text(part: Part, text: _Text) -> Iterator[Layer]:
    square = (text.width, text.width)
    for index in range(text.layers):
        start = f"{TEXT_MODEL}encoder.layers.{index}."
        for norm in ("layer_norm1", "layer_norm2"):
            yield Layer(part, start + norm, "norm", text.width, 1)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        yield from _linears(f"{start}self_attn.", dict.fromkeys(names, square), part)
        wide = {"fc1": (4 * text.width, text.width), "fc2": (text.width, 4 * text.width)}
        yield from _linears(f"{start}mlp.", wide, part)
    yield Layer(part, f"{TEXT_MODEL}final_layer_norm", "norm", text.width, 1)
    if text.projected:
        yield from _linears("", {TEXT_PROJECTION: square}, part)
