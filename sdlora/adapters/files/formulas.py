"""What the factors of a layer make of its weight, algorithm by algorithm, as the tools that write them do.

Shapes: o outputs, i inputs, r rank, x and y the edges of a kernel, k blocks of n outputs. Everything in the number type
of the factors given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]

_NEUMANN_TERMS = 5
"""Of the series that OneTrainer and PEFT take for the Cayley transform; no file tells another number."""


def joined_down(down: Tensor, mid: Tensor) -> Tensor:
    """lora_down [r,i,x,y] of a Tucker decomposition: mid [r,r,x,y] on down [r,i,1,1]."""
    return torch.einsum("rsxy,si->rixy", mid, down.flatten(1))


def lora(factors: Factors) -> Tensor:
    """up @ down, [o,i] or [o,i,x,y]."""
    down, up = factors["lora_down"], factors["lora_up"]
    if "lora_mid" in factors:
        down = joined_down(down, factors["lora_mid"])
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def loha(factors: Factors) -> Tensor:
    """The elementwise product of two low-rank matrices (FedPara, Hyeon-Woo et al. 2022)."""
    if "hada_t1" in factors:
        first, second = (
            torch.einsum("rsxy,ro,si->oixy", factors[f"hada_t{i}"], factors[f"hada_w{i}_a"], factors[f"hada_w{i}_b"])
            for i in (1, 2)
        )
        return first * second
    return (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"])


def lokr(factors: Factors) -> Tensor:
    """The Kronecker product of two matrices, each whole or of low rank."""
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        second = factors["lokr_w2"]
    elif "lokr_t2" in factors:
        second = torch.einsum("rsxy,ro,si->oixy", factors["lokr_t2"], factors["lokr_w2_a"], factors["lokr_w2_b"])
    else:
        second = factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    # The first factor has no kernel axes; ones in their place make kron repeat the second's whole kernels.
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())


def full(factors: Factors) -> Tensor:
    """`diff`, which is the update already: it stands beside the algorithms whose update is a product."""
    return factors["diff"]


PRODUCTS: dict[str, Callable[[Factors], Tensor]] = {"lora": lora, "loha": loha, "lokr": lokr, "full": full}
"""Updates that don't depend on the weight they are added to."""


def glora(factors: Factors, weight: Tensor) -> Tensor:
    """W a1 a2 + b1 b2 (Chavan et al. 2023), without the scale."""
    inner = factors["a1"].flatten(1) @ factors["a2"].flatten(1)
    own = torch.einsum("oi...,ij->oj...", weight, inner)
    down = joined_down(factors["b2"], factors["bm"]) if "bm" in factors else factors["b2"]
    return own + (factors["b1"].flatten(1) @ down.flatten(1)).reshape(weight.shape)


def ia3(factors: Factors, weight: Tensor) -> Tensor:
    """W times one number for each output or input (Liu et al. 2022); LyCORIS keeps what is added to 1, PEFT the sum."""
    if "ia3_l" in factors:
        scale = factors["ia3_l"].flatten() - 1
        on_input = factors["ia3_l"].shape[0] == 1 and factors["ia3_l"].shape[1] == weight.shape[1]
    else:
        scale = factors["ia3"].flatten()
        on_input = bool(factors["on_input"]) if "on_input" in factors else False
    ones = [1] * (weight.ndim - 2)
    return weight * scale.reshape(1, -1, *ones) if on_input else weight * scale.reshape(-1, 1, *ones)


def oft(factors: Factors, weight: Tensor, constraint: float | None) -> Tensor:
    """The weight turned by orthogonal blocks, less itself (OFT, Qiu et al. 2023; BOFT, Liu et al. 2024).

    constraint: kohya's and LyCORIS' alpha, a bound of the blocks' norm for each output; none when 0.
    """
    if "oft_R" in factors:
        return _turned_inputs(factors, weight) - weight
    blocks = factors["oft_blocks"]
    skew = blocks - blocks.transpose(-1, -2)
    # The norm is bounded by alpha times the outputs, as both tools count it.
    bound, norm = (constraint or 0.0) * weight.shape[0], float(skew.norm())
    if 0 < bound < norm:
        skew = skew * (bound / norm)
    unit = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    # The Cayley transform: (I + S)(I - S)^-1 is orthogonal for every skew-symmetric S.
    turn = (unit + skew) @ torch.linalg.inv(unit - skew)
    turned = _butterfly(turn, weight) if turn.ndim == 4 else _turned_outputs(turn, weight)
    if "rescale" in factors:
        turned = turned * factors["rescale"].reshape(-1, *[1] * (weight.ndim - 1))
    return turned - weight


def _turned_outputs(turn_knm: Tensor, weight: Tensor) -> Tensor:
    split = weight.reshape(turn_knm.shape[0], turn_knm.shape[1], -1)
    return torch.einsum("knm,kni->kmi", turn_knm, split).reshape(weight.shape)


def _butterfly(turn_mknn: Tensor, weight: Tensor) -> Tensor:
    """m stages; stage s turns pairs of outputs that lie 2^s half blocks apart."""
    size = turn_mknn.shape[-1]
    turned = weight.reshape(weight.shape[0], -1)
    for stage, turn_knn in enumerate(turn_mknn):
        stride = 2**stage * (size // 2)
        columns = turned.shape[-1]
        mixed = turned.reshape(-1, 2, stride, columns).transpose(1, 2).reshape(-1, size, columns)
        mixed = torch.einsum("kij,kjc->kic", turn_knn, mixed)
        turned = mixed.reshape(-1, stride, 2, columns).transpose(1, 2).reshape(-1, columns)
    return turned.reshape(weight.shape)


def _turned_inputs(factors: Factors, weight: Tensor) -> Tensor:
    """OneTrainer and PEFT turn the inputs, by the first terms of the Cayley transform's series."""
    upper_rn = factors["oft_R"]
    if "scaled_oft" in factors:
        upper_rn = upper_rn / upper_rn.shape[1] ** 0.5
    size = oft_block_size(upper_rn.shape[1])
    rows, columns = torch.triu_indices(size, size, 1)
    skew = torch.zeros(len(upper_rn), size, size, dtype=upper_rn.dtype)
    skew[:, rows, columns] = upper_rn
    skew = skew - skew.transpose(1, 2)
    # (I + S)(I - S)^-1 as the series I + 2S + 2S^2 + ..., whose last power both tools add once only.
    turn = torch.eye(size, dtype=skew.dtype) + 2 * skew
    power = skew
    for term in range(2, _NEUMANN_TERMS):
        power = power @ skew
        turn = turn + (power if term == _NEUMANN_TERMS - 1 else 2 * power)
    flat = weight.reshape(weight.shape[0], -1, size)
    if len(turn) == 1:
        turn = turn.expand(flat.shape[1], -1, -1)
    # y = W (x R) is W R^T for each block of inputs
    return torch.einsum("okc,kjc->okj", flat, turn).reshape(weight.shape)


def oft_block_size(num_elements: int) -> int:
    """Edge of a block whose upper triangle has so many numbers."""
    return round((1 + (1 + 8 * num_elements) ** 0.5) / 2)


def oft_is_whole(factors: Factors) -> bool:
    """Whether the tensors of an OFT or BOFT make blocks: square ones, or whole triangles, and stages that pair up."""
    if "oft_R" in factors:
        upper = factors["oft_R"]
        size = oft_block_size(upper.shape[1]) if upper.ndim == 2 else 0
        return upper.numel() > 0 and size * (size - 1) // 2 == upper.shape[1]
    blocks = factors["oft_blocks"]
    if blocks.ndim not in (3, 4) or blocks.numel() == 0 or blocks.shape[-1] != blocks.shape[-2]:
        return False
    _, outputs = oft_width(factors)
    # A stage of a butterfly turns pairs of half blocks that lie ever further apart.
    widest = 2 ** (blocks.shape[0] - 1) * blocks.shape[-1] if blocks.ndim == 4 else 1
    is_even = blocks.ndim == 3 or blocks.shape[-1] % 2 == 0
    return is_even and outputs % widest == 0 and factors.get("rescale", blocks.new_ones(outputs)).numel() == outputs


def oft_width(factors: Factors) -> tuple[bool, int]:
    """Whether the outputs are turned (else the inputs), and how many of them."""
    if "oft_R" in factors:
        number, elements = factors["oft_R"].shape
        return False, number * oft_block_size(elements)
    blocks = factors["oft_blocks"]
    return True, blocks.shape[-3] * blocks.shape[-1]


def rescaled(tuned_oi: Tensor, magnitude: Tensor, shape: torch.Size) -> Tensor:
    """A tuned weight (as a matrix) with DoRA's norm for every output, or (old files) for every input."""
    if magnitude.shape[0] == tuned_oi.shape[0] and magnitude.numel() == tuned_oi.shape[0]:
        return tuned_oi * (magnitude.reshape(-1, 1) / tuned_oi.norm(dim=1, keepdim=True))
    tuned = tuned_oi.reshape(shape[0], shape[1], -1)
    norm_i = tuned.transpose(0, 1).flatten(1).norm(dim=1)
    return (tuned * (magnitude.reshape(-1) / norm_i)[None, :, None]).flatten(1)
