"""The gate of the UNet's feed-forward layers as one operation: h * gelu(g), whose gradient is written where it belongs.

As torch has it, h and g are parts of one tensor, and their gradients are joined again by a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class PlainGEGLU(GEGLU):
    """diffusers' GEGLU (Shazeer 2020) with a gradient of its own."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """h * gelu(g), where h and g are the halves of the projection."""
        outputs: Tensor = _Gated.apply(self.proj(hidden_states))
        return outputs


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        hidden, gate = projected.chunk(2, dim=-1)
        share = functional.gelu(gate)
        ctx.save_for_backward(projected, share)
        return hidden * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        projected, share = ctx.saved_tensors
        hidden, gate = projected.chunk(2, dim=-1)
        to_projected = torch.empty_like(projected)
        to_hidden, to_gate = to_projected.chunk(2, dim=-1)
        torch.mul(gradient, share, out=to_hidden)
        torch.ops.aten.gelu_backward.grad_input(gradient * hidden, gate, grad_input=to_gate)
        return to_projected


def use_plain_gates(unet: nn.Module) -> None:
    """Give the UNet's feed-forward layers `PlainGEGLU`'s passes."""
    for layer in unet.modules():
        if type(layer) is GEGLU:
            # The module stays the same object, with its hooks and its place in the model.
            layer.__class__ = PlainGEGLU
