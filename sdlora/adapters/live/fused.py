"""LoRA layers whose base and update are one operation, for processors that calculate in bf16.

PEFT's layer is a chain: base layer, two narrow products, a scaling and a sum, each with a node of its own in autograd
and a tensor in the size of the output, and backwards the same again. Here base and update share one output, and the
gradients of their common input one sum. What is trained, saved, scaled and switched off stays PEFT's layer, and where
it does anything else (other adapters, merged, switched off) its own forward pass runs.

Shapes: N positions of all images, I inputs, O outputs, R the rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sdlora.adapters.live.injection import ADAPTER_NAME
from sdlora.models.frozen.packed import PackedLayer


class FusedLinear(lora.Linear):
    """PEFT's LoRA for a linear layer, without dropout, over a frozen layer in half precision."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """base(x) + scale * x A' B'."""
        if args or kwargs or self.disable_adapters or self.merged or self.active_adapters != [ADAPTER_NAME]:
            return super().forward(x, *args, **kwargs)
        down, up = self.lora_A[ADAPTER_NAME].weight, self.lora_B[ADAPTER_NAME].weight
        outputs: Tensor = _Fused.apply(x, down, up, self.base_layer, self.scaling[ADAPTER_NAME])
        return outputs


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, down_RI: Tensor, up_OR: Tensor, base: nn.Linear, scale: float) -> Tensor:
        dtype = base.weight.dtype if not isinstance(base, PackedLayer) else base.dtype
        ctx.base, ctx.scale, ctx.input_dtype, ctx.input_shape = base, scale, inputs.dtype, inputs.shape
        # Autocast does not reach into an autograd.Function.
        up_OR = up_OR if scale == 1 else up_OR * scale
        inputs_NI, down_RI, up_OR = inputs.to(dtype).flatten(0, -2), down_RI.to(dtype), up_OR.to(dtype)
        if isinstance(base, PackedLayer):
            outputs_NO = base.output(inputs_NI)
        else:
            outputs_NO = nn.functional.linear(inputs_NI, base.weight, base.bias)
        narrow_NR = inputs_NI @ down_RI.t()
        outputs_NO.addmm_(narrow_NR, up_OR.t())
        ctx.save_for_backward(inputs_NI, narrow_NR, down_RI, up_OR)  # up_OR with the scale in it
        return outputs_NO.view(*inputs.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        inputs_NI, narrow_NR, down_RI, up_OR = ctx.saved_tensors
        gradient_NO = gradient.to(inputs_NI.dtype).flatten(0, -2)
        to_narrow_NR = gradient_NO @ up_OR
        to_down_RI = (to_narrow_NR.t() @ inputs_NI).float()
        to_up_OR = (gradient_NO.t() @ narrow_NR).float()
        if ctx.scale != 1:
            to_up_OR *= ctx.scale
        if not ctx.needs_input_grad[0]:
            return None, to_down_RI, to_up_OR, None, None
        base = ctx.base
        if isinstance(base, PackedLayer):
            to_inputs_NI = base.input_gradient(inputs_NI.shape, gradient_NO)
        else:
            to_inputs_NI = gradient_NO @ base.weight
        to_inputs_NI.addmm_(to_narrow_NR, down_RI)
        return to_inputs_NI.view(ctx.input_shape).to(ctx.input_dtype), to_down_RI, to_up_OR, None, None


def fuse(layers: Iterable[BaseTunerLayer]) -> None:
    """Have PEFT's LoRA layers calculate in one operation where they have this form; others stay as they are."""
    for layer in layers:
        is_plain = type(layer) is lora.Linear and not layer.lora_variant and not layer.fan_in_fan_out
        base = layer.get_base_layer()
        if is_plain and (isinstance(base, PackedLayer) or type(base) is nn.Linear) and _is_undisturbed(layer):
            # The module stays the same object, with its parameters, its names and its place in the model.
            layer.__class__ = FusedLinear


def _is_undisturbed(layer: Any) -> bool:
    """Whether nothing happens between the factors: no dropout, no bias."""
    down, up, dropout = (getattr(layer, name)[ADAPTER_NAME] for name in ("lora_A", "lora_B", "lora_dropout"))
    return isinstance(dropout, nn.Identity) and up.bias is None and not down._forward_hooks
