"""Gives a UNet that carries an adapter faster layers for what is frozen in it.

plain   torch's own layers
fast    convolutions and wide linear layers held in oneDNN's order for both directions (`packed`), at twice their bytes
lean    no second copy: convolutions with their channels innermost, as matrix products where images are small

Both have a faster backward pass of attention (`attention`), all in bf16. What an adapter is stays PEFT's: only the
layers beneath its wrappers, and those without one, are exchanged; `adapters.live.fused` joins the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdlora.config.optimization import Speed
from sdlora.models.frozen.attention import PlainAttention
from sdlora.models.frozen.packed import packed
from sdlora.models.frozen.windows import use_plain_convolutions
from sdlora.models.host import forget_mapped
from sdlora.models.quantize import QuantizedLayer

_WIDE = 256
"""Channels of a UNet's first level from which layers with their channels innermost are faster (6% when generating in
bf16 on a processor); narrow group norms are then slower."""
_LEAST_LINEAR = 2**19
"""Weights of a linear layer from which packing it was measured to pay (8 to 15% of its time)."""


def speed_up(unet: UNet2DConditionModel, speed: Speed, *, kept: Iterable[nn.Module] = ()) -> None:
    """Exchange the UNet's frozen layers in place for those of `speed`, which calculate in bf16.

    kept: layers to leave alone, whose weights an adapter reads at every step (DoRA, LoHa, LoKr).
    """
    if speed == "plain":
        return
    unet.set_attn_processor(PlainAttention())
    if speed == "lean":
        to_channels_last(unet)
        use_plain_convolutions(unet)
        return
    left_alone = {id(layer) for layer in kept}
    for name, layer in list(unet.named_modules()):
        is_frozen = not any(parameter.requires_grad for parameter in layer.parameters())
        if id(layer) in left_alone or not is_frozen or not _has_form(layer):
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(unet.get_submodule(parent), attribute, packed(layer, torch.bfloat16))
        forget_mapped([layer.weight])


@contextmanager
def without_gradients(unet: UNet2DConditionModel, device: torch.device) -> Iterator[None]:
    """Attention as generating has it, for previews of a run whose steps take torch's own (to use under autocast)."""
    before = unet.attn_processors
    if device.type == "cpu" and calculates_in_bf16() and unet.dtype == torch.bfloat16:
        unet.set_attn_processor(PlainAttention())
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def packed_bytes(unet: nn.Module) -> int:
    """Bytes that `fast` takes beyond the plain weights, in bf16; the UNet may be a layout without weights."""
    return sum(2 * layer.weight.numel() for layer in unet.modules() if _has_form(layer))


def calculates_in_bf16() -> bool:
    """Whether oneDNN is there and this processor has bf16, without which nothing here is faster."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_form(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether a layer is of a form that is faster packed."""
    # These very classes alone: quantised and adapted layers have a forward of their own.
    if type(layer) is nn.Conv2d:
        is_plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return is_plain and (layer.kernel_size != (1, 1) or layer.stride == (1, 1))
    return type(layer) is nn.Linear and layer.weight.numel() >= _LEAST_LINEAR


def is_wide(unet: UNet2DConditionModel) -> bool:
    """Whether the model is wide enough for its layers to gain from another order, as all real ones are."""
    return int(unet.config.block_out_channels[0]) >= _WIDE


def to_channels_last(model: nn.Module) -> None:
    """Frozen convolutions with their channels innermost; never two copies of many at once."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer, QuantizedLayer) and not layer.weight.requires_grad:
            weight = layer.weight.data
            layer.weight.data = weight.contiguous(memory_format=torch.channels_last)
            if layer.weight.data_ptr() != weight.data_ptr():
                forget_mapped([weight])
