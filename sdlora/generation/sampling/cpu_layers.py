"""Attention and small convolutions for processors that calculate in bf16: matrix products, faster than torch's own.

torch's fused attention for CPUs takes twice as long in bf16 for the short sequences of images (1,024 positions, 8 heads
of 40: 38 ms against 18), while the rounding of the scores to bf16 does not show in the UNet's output (relative error to
fp32 0.0041 in both). Scores are held for a few heads at a time, so memory stays small for large images.

Its convolutions bring the weight into an order of their own at every call, which for images of a few positions costs
more than the convolution (1,280 channels, 4 x 4: 8.4 ms against 3.5 as a matrix product).

Shapes: B images, N positions, M positions attended to, G heads of all images, D width of a head; C channels, O output
channels, H and W height and width, k kernel edge.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

_MOST_SCORES = 2**25
"""Attention scores held at once: 64 MiB in bf16."""
_MOST_POSITIONS = 64
"""Positions of an output, up to which a convolution is faster as a matrix product, whatever the batch."""


class PlainAttention:
    """A diffusers attention processor for the UNet's transformer blocks, for use without gradients."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Self-attention, or cross-attention to `encoder_hidden_states`; both [B, positions, width]."""
        assert attention_mask is None, "Stable Diffusion's UNets are called without masks"
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, heads = len(hidden_states), attn.heads
        query_GND = _by_head(attn.to_q(hidden_states), heads)
        key_GMD = _by_head(attn.to_k(source), heads)
        value_GMD = _by_head(attn.to_v(source), heads)
        at_once = max(1, _MOST_SCORES // (query_GND.shape[1] * key_GMD.shape[1]))
        parts = zip(query_GND.split(at_once), key_GMD.split(at_once), value_GMD.split(at_once), strict=True)
        mixed_GND = torch.cat([_attend(query, key, value, attn.scale) for query, key, value in parts])
        joined = mixed_GND.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)
        outputs: Tensor = attn.to_out[0](joined)
        return outputs


class PlainConvolution(nn.Conv2d):
    """A convolution that is a matrix product where that is faster; its weight has its channels innermost."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The same convolution as a matrix product over windows."""
        weight_OCkk, edge = self.weight, self.kernel_size[0]
        height, width = (
            (inputs.shape[axis] + 2 * int(self.padding[axis - 2]) - edge) // self.stride[axis - 2] + 1
            for axis in (2, 3)
        )
        in_order = weight_OCkk.is_contiguous(memory_format=torch.channels_last)
        if height * width > _MOST_POSITIONS or not in_order:
            return super().forward(inputs)
        rows, columns = int(self.padding[0]), int(self.padding[1])
        padded_BHWC = functional.pad(inputs.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
        patches_BHWCkk = padded_BHWC.unfold(1, edge, self.stride[0]).unfold(2, edge, self.stride[1])
        windows = patches_BHWCkk.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
        outputs = functional.linear(windows, weight_OCkk.permute(0, 2, 3, 1).flatten(1), self.bias)
        return outputs.view(len(inputs), height, width, -1).permute(0, 3, 1, 2)


def use_plain_convolutions(unet: nn.Module) -> None:
    """Give the UNet's 3x3 convolutions `PlainConvolution`'s forward; weights stay the same tensors."""
    for layer in unet.modules():
        # This very class alone: quantised and adapted layers have a forward of their own.
        if type(layer) is nn.Conv2d and layer.kernel_size == (3, 3) and layer.groups == 1:
            # The module stays the same object, with its hooks and its place in the model.
            layer.__class__ = PlainConvolution


def _by_head(projected: Tensor, heads: int) -> Tensor:
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _attend(query_GND: Tensor, key_GMD: Tensor, value_GMD: Tensor, scale: float) -> Tensor:
    # With beta 0 nothing of this is read, but baddbmm wants it; for that it scales without a pass of its own.
    nothing = query_GND.new_empty(1, 1, 1).expand(len(query_GND), query_GND.shape[1], key_GMD.shape[1])
    scores_GNM = torch.baddbmm(nothing, query_GND, key_GMD.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(scores_GNM.softmax(dim=-1), value_GMD)
