"""LoRA layers whose base and update are one operation, for processors that calculate in bf16.

PEFT's layer is a chain: base layer, two narrow products, a scaling and a sum, each with a node of its own in autograd
and a tensor in the size of the output, and backwards the same again. Here base and update share one output, and the
gradients of their common input one sum. What is trained, saved, scaled and switched off stays PEFT's layer, and where
it does anything else (other adapters, merged, switched off) its own forward pass runs.

Shapes: N positions of all images, I inputs, O outputs, R the rank; B images, H and W height and width, k kernel edge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear
from torch.nn.grad import conv2d_input

from sdlora.adapters.live.injection import ADAPTER_NAME
from sdlora.models.frozen.packed import PackedLayer
from sdlora.models.frozen.windows import PlainConvolution


class FusedLinear(lora.Linear):
    """PEFT's LoRA for a linear layer, without dropout, over a frozen layer in half precision."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """base(x) + scale * up(down(x))."""
        if args or kwargs or not _is_alone(self):
            return super().forward(x, *args, **kwargs)
        return _applied(_Linear, self, x)


class FusedConv2d(lora.Conv2d):
    """The same for a convolution."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """base(x) + scale * up(down(x))."""
        if args or kwargs or not _is_alone(self):
            return super().forward(x, *args, **kwargs)
        return _applied(_Conv2d, self, x)


def fuse(layers: Iterable[BaseTunerLayer]) -> None:
    """Have PEFT's LoRA layers calculate in one operation where they have this form; others stay as they are."""
    for layer in layers:
        fused = {lora.Linear: FusedLinear, lora.Conv2d: FusedConv2d}.get(type(layer))
        base = layer.get_base_layer()
        is_known = isinstance(base, PackedLayer | PlainConvolution) or type(base) in (nn.Linear, nn.Conv2d)
        # A base in fp32 is left to autocast, which takes it in bf16.
        if fused is not None and is_known and _dtype(base) == torch.bfloat16 and _is_undisturbed(layer):
            # The module stays the same object, with its parameters, its names and its place in the model.
            layer.__class__ = fused


def _is_undisturbed(layer: Any) -> bool:
    """Whether nothing happens beside and between the factors: no DoRA, no dropout, no bias."""
    down, up, dropout = (getattr(layer, name)[ADAPTER_NAME] for name in ("lora_A", "lora_B", "lora_dropout"))
    is_plain = (
        not layer.lora_variant
        and not getattr(layer, "fan_in_fan_out", False)
        and getattr(layer.get_base_layer(), "groups", 1) == 1
    )
    return is_plain and isinstance(dropout, nn.Identity) and up.bias is None and not down._forward_hooks


def _is_alone(layer: Any) -> bool:
    """Whether the layer's answer is that of its base and the one trained adapter."""
    return not layer.disable_adapters and not layer.merged and layer.active_adapters == [ADAPTER_NAME]


def _applied(operation: type[torch.autograd.Function], layer: Any, inputs: Tensor) -> Tensor:
    down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    outputs: Tensor = operation.apply(inputs, down, up, layer.base_layer, layer.scaling[ADAPTER_NAME])
    return outputs


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, down_RI: Tensor, up_OR: Tensor, base: nn.Module, scale: float) -> Tensor:
        ctx.base, ctx.scale, ctx.input_dtype, ctx.input_shape = base, scale, inputs.dtype, inputs.shape
        # Autocast does not reach into an autograd.Function.
        inputs_NI, down_RI, up_OR = (each.to(_dtype(base)) for each in (inputs.flatten(0, -2), down_RI, up_OR))
        outputs_NO = _output(base, inputs_NI)
        narrow_NR = inputs_NI @ down_RI.t()
        outputs_NO.addmm_(narrow_NR, up_OR.t(), alpha=scale)
        ctx.save_for_backward(inputs_NI, narrow_NR, down_RI, up_OR)
        return outputs_NO.view(*inputs.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs_NI, narrow_NR, down_RI, up_OR = ctx.saved_tensors
        gradient_NO = gradient.to(inputs_NI.dtype).flatten(0, -2)
        to_narrow_NR = _scaled(gradient_NO, up_OR, ctx.scale)
        to_down_RI = (to_narrow_NR.t() @ inputs_NI).float()
        to_up_OR = _scaled(gradient_NO.t(), narrow_NR, ctx.scale).float()
        to_inputs = None
        if ctx.needs_input_grad[0]:
            to_inputs = _input_gradient(ctx.base, inputs_NI.shape, gradient_NO).addmm_(to_narrow_NR, down_RI)
            to_inputs = to_inputs.view(ctx.input_shape).to(ctx.input_dtype)
        return to_inputs, to_down_RI, to_up_OR, None, None


class _Conv2d(torch.autograd.Function):
    """With channels innermost throughout, so that the 1x1 convolution `up` is a product of rows."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, down: Tensor, up: Tensor, base: nn.Conv2d, scale: float) -> Tensor:
        ctx.base, ctx.scale, ctx.input_dtype = base, scale, inputs.dtype
        inputs_BIHW, down_RIkk = (each.to(_dtype(base), memory_format=torch.channels_last) for each in (inputs, down))
        up_OR = up.flatten(1).to(_dtype(base))
        outputs_BOHW = _output(base, inputs_BIHW).contiguous(memory_format=torch.channels_last)
        narrow_BRHW = conv2d(inputs_BIHW, down_RIkk, None, base.stride, base.padding, base.dilation)
        # As a view, or it raises: a copy's sum would be lost.
        outputs_NO = outputs_BOHW.permute(0, 2, 3, 1).view(-1, len(up_OR))
        outputs_NO.addmm_(_rows(narrow_BRHW), up_OR.t(), alpha=scale)
        ctx.save_for_backward(inputs_BIHW, narrow_BRHW, down_RIkk, up_OR)
        return outputs_BOHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs_BIHW, narrow_BRHW, down_RIkk, up_OR = ctx.saved_tensors
        gradient_BOHW = gradient.to(inputs_BIHW.dtype, memory_format=torch.channels_last)
        base, rows_NO = ctx.base, _rows(gradient_BOHW)
        batch, _, height, width = narrow_BRHW.shape
        to_narrow_BHWR = _scaled(rows_NO, up_OR, ctx.scale).view(batch, height, width, -1)
        to_up_OR = _scaled(rows_NO.t(), _rows(narrow_BRHW), ctx.scale).float()
        to_inputs, to_down_RIkk, _ = torch.ops.aten.convolution_backward(
            to_narrow_BHWR.permute(0, 3, 1, 2), inputs_BIHW, down_RIkk, None, base.stride, base.padding, base.dilation,
            False, [0, 0], 1, [ctx.needs_input_grad[0], True, False],
        )  # fmt: skip
        if ctx.needs_input_grad[0]:
            to_inputs = (to_inputs + _input_gradient(base, inputs_BIHW.shape, gradient_BOHW)).to(ctx.input_dtype)
        return to_inputs, to_down_RIkk.float(), to_up_OR[..., None, None], None, None


def _dtype(base: Any) -> torch.dtype:
    """The number type that a frozen layer calculates in."""
    dtype: torch.dtype = base.dtype if isinstance(base, PackedLayer) else base.weight.dtype
    return dtype


def _output(base: Any, inputs: Tensor) -> Tensor:
    """A frozen layer's output, without autograd."""
    if isinstance(base, PackedLayer | PlainConvolution):
        return base.output(inputs)
    if isinstance(base, nn.Linear):
        return linear(inputs, base.weight, base.bias)
    return conv2d(inputs, base.weight, base.bias, base.stride, base.padding, base.dilation)


def _input_gradient(base: Any, input_shape: torch.Size, gradient: Tensor) -> Tensor:
    """The gradient with respect to a frozen layer's input."""
    if isinstance(base, PackedLayer | PlainConvolution):
        return base.input_gradient(input_shape, gradient)
    if isinstance(base, nn.Linear):
        return gradient @ base.weight
    return conv2d_input(input_shape, base.weight, gradient, base.stride, base.padding, base.dilation)


def _rows(image: Tensor) -> Tensor:
    """[B, C, H, W] as [B H W, C], the same memory where channels are innermost."""
    return image.permute(0, 2, 3, 1).flatten(0, 2)


def _scaled(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """scale * one @ other, without a pass of its own for the scale."""
    # With beta 0 nothing of this is read, but addmm wants it.
    nothing = one[:1, :1].expand(len(one), other.shape[1])
    return torch.addmm(nothing, one, other, beta=0, alpha=scale)
