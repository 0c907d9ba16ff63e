"""Attention for processors that calculate in bf16, with a faster backward pass than that of torch's fused attention.

torch's fused attention for CPUs is fast forwards; backwards it takes three times as long as matrix products (bf16,
1,024 positions, 8 heads of 40: 32 ms against 10). So the backward pass is made of matrix products here. Between few
positions the scores are kept for it; between many, nothing is: scores are made again, for a few heads at a time, from
what the fused attention tells of their sums. The rounding of scores to bf16 does not show in the UNet's output
(relative error to fp32 0.0041 in both).

Shapes: B images, N positions, M positions attended to, G heads of all images, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_MOST_KEPT = 2**18
"""Scores of a head up to which they are kept for the backward pass; beyond, making them again is faster."""
_AT_ONCE = 2**21
"""Scores that are made again at once: 4 MiB in bf16, which stay near the processor."""


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
        projected = (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        by_head = [each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in projected]
        mixed_BHND: Tensor = _Attention.apply(*by_head, attn.scale)
        outputs: Tensor = attn.to_out[0](mixed_BHND.transpose(1, 2).flatten(2))
        return outputs


class _Attention(torch.autograd.Function):
    """softmax(scale * query key') value, for each image and head."""

    @staticmethod
    def forward(ctx: Any, query_BHND: Tensor, key_BHMD: Tensor, value_BHMD: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        # By their number alone, so that activations that are made again are those that were.
        if query_BHND.shape[2] * key_BHMD.shape[2] > _MOST_KEPT:
            mixed_BHND, sums_BHN = _fused(query_BHND, key_BHMD, value_BHMD, scale=scale)
            ctx.save_for_backward(query_BHND, key_BHMD, value_BHMD, mixed_BHND, sums_BHN)
            return mixed_BHND
        shares_GNM = _scaled(query_BHND.flatten(0, 1), key_BHMD.flatten(0, 1).transpose(1, 2), scale).softmax(dim=-1)
        ctx.save_for_backward(query_BHND, key_BHMD, value_BHMD, shares_GNM)
        return torch.bmm(shares_GNM, value_BHMD.flatten(0, 1)).view_as(query_BHND)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHND: Tensor) -> tuple[Tensor | None, ...]:
        # Asked for once: where activations are made again, each time anew would be.
        query_BHND, key_BHMD, value_BHMD, *made = ctx.saved_tensors
        gradient, query, key, value = (each.flatten(0, 1) for each in (gradient_BHND, query_BHND, key_BHMD, value_BHMD))
        if len(made) == 1:
            found = _from_kept(gradient, query, key, value, made[0], ctx.scale)
        else:
            mixed, sums = (each.flatten(0, 1) for each in made)
            found = _from_sums(gradient, query, key, value, mixed, sums, ctx.scale)
        return *(each.unflatten(0, gradient_BHND.shape[:2]) for each in found), None


def _from_kept(
    gradient_GND: Tensor, query_GND: Tensor, key_GMD: Tensor, value_GMD: Tensor, shares_GNM: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from the shares."""
    to_value_GMD = torch.bmm(shares_GNM.transpose(1, 2), gradient_GND)
    to_shares_GNM = torch.bmm(gradient_GND, value_GMD.transpose(1, 2))
    to_scores_GNM = torch._softmax_backward_data(to_shares_GNM, shares_GNM, -1, shares_GNM.dtype)
    to_query_GND = _scaled(to_scores_GNM, key_GMD, scale)
    return to_query_GND, _scaled(to_scores_GNM.transpose(1, 2), query_GND, scale), to_value_GMD


def _from_sums(
    gradient_GND: Tensor,
    query_GND: Tensor,
    key_GMD: Tensor,
    value_GMD: Tensor,
    mixed_GND: Tensor,
    sums_GN: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from the logarithm of each position's sum (Dao et al. 2022, algorithm 4).

    A share is exp(scale * query key' - sum), and its score's gradient is the share times (gradient value' - mean),
    where mean is gradient mixed'. Both subtractions are part of a matrix product: sum and mean are further columns,
    each as two numbers of bf16, since one is not exact enough.
    """
    shares_shape = (*query_GND.shape[:2], key_GMD.shape[1])
    to_key_GMD, to_value_GMD = torch.empty_like(key_GMD), torch.empty_like(value_GMD)
    to_query_GND = torch.zeros_like(query_GND, dtype=torch.float32)  # a sum over parts
    # To the base of 2, since exp2 is faster than exp.
    in_bits = scale * math.log2(math.e)
    queries_GNE = torch.cat([query_GND * in_bits, *_in_two(-math.log2(math.e) * sums_GN, query_GND)], dim=-1)
    means_GN = (gradient_GND * mixed_GND).sum(dim=-1, dtype=torch.float32)
    gradients_GNE = torch.cat([gradient_GND, *_in_two(-means_GN, gradient_GND)], dim=-1)
    ones = key_GMD.new_ones(*key_GMD.shape[:2], 2)
    keys_GEM = torch.cat([key_GMD, ones], dim=-1).transpose(1, 2)
    values_GEM = torch.cat([value_GMD, ones], dim=-1).transpose(1, 2)
    for heads, some in _parts(*shares_shape):
        shares_GNM = torch.bmm(queries_GNE[heads], keys_GEM[heads, :, some]).exp2_()
        to_value_GMD[heads, some] = torch.bmm(shares_GNM.transpose(1, 2), gradient_GND[heads])
        to_scores_GNM = torch.bmm(gradients_GNE[heads], values_GEM[heads, :, some]).mul_(shares_GNM)
        to_query_GND[heads] += _scaled(to_scores_GNM, key_GMD[heads, some], scale)
        to_key_GMD[heads, some] = _scaled(to_scores_GNM.transpose(1, 2), query_GND[heads], scale)
    return to_query_GND.to(query_GND.dtype), to_key_GMD, to_value_GMD


def _in_two(exact: Tensor, like: Tensor) -> Iterator[Tensor]:
    """Numbers as a sum of two in the number type of `like`, each with a last axis of one."""
    coarse = exact.to(like.dtype)
    yield coarse[..., None]
    yield (exact - coarse).to(like.dtype)[..., None]


def _parts(heads: int, positions: int, others: int) -> Iterator[tuple[slice, slice]]:
    """Heads and positions attended to that are taken at once: several whole heads, or a part of one."""
    heads_at_once = max(1, _AT_ONCE // (positions * others))
    others_at_once = others if heads_at_once > 1 else max(1, _AT_ONCE // positions)
    for first in range(0, heads, heads_at_once):
        for start in range(0, others, others_at_once):
            yield slice(first, first + heads_at_once), slice(start, start + others_at_once)


def _scaled(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """scale * one @ other, without a pass of its own for the scale."""
    # With beta 0 nothing of this is read, but baddbmm wants it.
    nothing = one.new_empty(1, 1, 1).expand(len(one), one.shape[1], other.shape[2])
    return torch.baddbmm(nothing, one, other, beta=0, alpha=scale)
