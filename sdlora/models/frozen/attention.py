"""Attention for processors that calculate in bf16: matrix products, faster than torch's fused attention.

torch's fused attention for CPUs takes longer in bf16 for the short sequences of images (1,024 positions, 8 heads of 40:
forward and backward pass 63 ms against 39), while the rounding of the scores to bf16 does not show in the UNet's output
(relative error to fp32 0.0041 in both). Scores are made for a few heads at a time, and kept for the backward pass only
where they are small, so memory stays small for large images.

Shapes: B images, N positions, M positions attended to, G heads of all images, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MOST_SCORES = 2**25
"""Attention scores held at once: 64 MiB in bf16."""
_MOST_KEPT = 2**24
"""Scores of a layer up to which they are kept for the backward pass: 32 MiB in bf16; beyond, they are made again."""


class PlainAttention:
    """A diffusers attention processor for the UNet's transformer blocks."""

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
        mixed_GND: Tensor = _Attention.apply(query_GND, key_GMD, value_GMD, attn.scale)
        joined = mixed_GND.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)
        outputs: Tensor = attn.to_out[0](joined)
        return outputs


class _Attention(torch.autograd.Function):
    """softmax(scale * query key') value."""

    @staticmethod
    def forward(ctx: Any, query_GND: Tensor, key_GMD: Tensor, value_GMD: Tensor, scale: float) -> Tensor:
        num_scores = len(query_GND) * query_GND.shape[1] * key_GMD.shape[1]
        ctx.at_once, ctx.scale = max(1, _MOST_SCORES * len(query_GND) // num_scores), scale
        keeps = any(ctx.needs_input_grad) and num_scores <= min(_MOST_KEPT, _MOST_SCORES)
        kept, mixed_GND = [], torch.empty_like(query_GND)
        for part in _parts(len(query_GND), ctx.at_once):
            shares_GNM = _shares(query_GND[part], key_GMD[part], scale)
            torch.bmm(shares_GNM, value_GMD[part], out=mixed_GND[part])
            kept += [shares_GNM] if keeps else []
        ctx.save_for_backward(query_GND, key_GMD, value_GMD, *kept)
        return mixed_GND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_GND: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query_GND, key_GMD, value_GMD, *kept = ctx.saved_tensors
        to_query, to_key, to_value = (torch.empty_like(each) for each in (query_GND, key_GMD, value_GMD))
        for part in _parts(len(query_GND), ctx.at_once):
            query, key, gradient = query_GND[part], key_GMD[part], gradient_GND[part]
            shares_GNM = kept[0] if kept else _shares(query, key, ctx.scale)
            torch.bmm(shares_GNM.transpose(1, 2), gradient, out=to_value[part])
            to_shares_GNM = torch.bmm(gradient, value_GMD[part].transpose(1, 2))
            to_scores_GNM = torch._softmax_backward_data(to_shares_GNM, shares_GNM, -1, shares_GNM.dtype)
            torch.baddbmm(to_query[part], to_scores_GNM, key, beta=0, alpha=ctx.scale, out=to_query[part])
            torch.baddbmm(to_key[part], to_scores_GNM.transpose(1, 2), query, beta=0, alpha=ctx.scale, out=to_key[part])
        return to_query, to_key, to_value, None


def _by_head(projected: Tensor, heads: int) -> Tensor:
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _parts(total: int, at_once: int) -> list[slice]:
    return [slice(start, start + at_once) for start in range(0, total, at_once)]


def _shares(query_GND: Tensor, key_GMD: Tensor, scale: float) -> Tensor:
    """How much each position takes of each other one: the softmax of their scores."""
    # With beta 0 nothing of this is read, but baddbmm wants it; for that it scales without a pass of its own.
    nothing = query_GND.new_empty(1, 1, 1).expand(len(query_GND), query_GND.shape[1], key_GMD.shape[1])
    return torch.baddbmm(nothing, query_GND, key_GMD.transpose(1, 2), beta=0, alpha=scale).softmax(dim=-1)
