"""Updates as products of two thin matrices in float64: exact sums, singular values, best approximations.

An update of a layer is a matrix [out, in*k*k] (k: kernel edge, 1 for linear layers). Shapes: o outputs, i inputs times
kernel elements, R inner size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.adapters.files.weights import ModuleWeights

_NOTHING = 1e-7
"""Singular values below this share of the largest are rounding, not content."""


@dataclass(frozen=True)
class LowRank:
    """The matrix up_oR @ down_Ri, every scale included."""

    up_oR: Tensor
    down_Ri: Tensor

    @property
    def rank(self) -> int:
        """Inner size; the true rank may be smaller."""
        return self.down_Ri.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.up_oR.shape[0], self.down_Ri.shape[1]

    def matrix(self) -> Tensor:
        """The product itself, [o, i]."""
        return self.up_oR @ self.down_Ri

    def times(self, weight: float) -> LowRank:
        """The matrix multiplied by a number."""
        return LowRank(self.up_oR * weight, self.down_Ri)

    def inner_product(self, other: LowRank) -> float:
        """Sum of the products of all entries, without computing the matrices."""
        return float(((self.up_oR.T @ other.up_oR) * (self.down_Ri @ other.down_Ri.T)).sum())

    def norm(self) -> float:
        """Frobenius norm, without computing the matrix."""
        return max(self.inner_product(self), 0.0) ** 0.5


def total(parts: Sequence[LowRank]) -> LowRank:
    """The exact sum of several updates of one layer; inner sizes add up."""
    return LowRank(torch.cat([part.up_oR for part in parts], 1), torch.cat([part.down_Ri for part in parts]))


def from_matrix(matrix_oi: Tensor) -> LowRank:
    """Any matrix in this form, in float64: beside it stands a unit matrix of its shorter side."""
    matrix_oi = matrix_oi.double()
    rows, columns = matrix_oi.shape
    if rows <= columns:
        return LowRank(torch.eye(rows, dtype=torch.float64), matrix_oi)
    return LowRank(matrix_oi, torch.eye(columns, dtype=torch.float64))


def from_weights(weights: ModuleWeights) -> LowRank:
    """A layer's update, exactly, whatever its algorithm. DoRA's magnitude is left out, as in `ModuleWeights.delta`.

    LoHa of rank r becomes inner size r*r; LoKr the product of its factors' ranks.
    """
    factors = {name: tensor.double() for name, tensor in weights.factors.items()}
    if weights.algorithm == "lora":
        plain = ModuleWeights("lora", factors, weights.alpha).without_tucker().factors
        pair = plain["lora_up"].flatten(1), plain["lora_down"].flatten(1)
    elif weights.algorithm == "full" or "hada_t1" in factors or "lokr_t2" in factors:
        return from_matrix(weights.delta().flatten(1))
    elif weights.algorithm == "loha":
        first, second = (factors["hada_w1_a"], factors["hada_w1_b"]), (factors["hada_w2_a"], factors["hada_w2_b"])
        # (A1 B1) * (A2 B2), entry by entry, is the product of all pairs of A's columns with all pairs of B's rows.
        pair = (
            (first[0][:, :, None] * second[0][:, None, :]).flatten(1),
            (first[1][:, None, :] * second[1][None, :, :]).flatten(0, 1),
        )
    else:
        first, second = _halves(factors, "lokr_w1"), _halves(factors, "lokr_w2")
        # (A kron C)(B kron D) = AB kron CD, so the whole product never has to be made.
        pair = torch.kron(first[0], second[0].contiguous()), torch.kron(first[1], second[1].contiguous())
    return LowRank(pair[0] * weights.scale, pair[1])


def _halves(factors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    if f"{name}_a" in factors:
        return factors[f"{name}_a"], factors[f"{name}_b"].flatten(1)
    whole = from_matrix(factors[name].flatten(1))
    return whole.up_oR, whole.down_Ri


@dataclass(frozen=True)
class Decomposition:
    """A matrix by its singular values: up_on[:, :k] @ down_ni[:k] is its best approximation of rank k."""

    up_on: Tensor
    down_ni: Tensor
    values_n: Tensor
    """Singular values, largest first."""

    @property
    def true_rank(self) -> int:
        """Number of singular values that are not rounding, at least 1."""
        return max(1, int((self.values_n > _NOTHING * self.values_n[0]).sum()))

    @property
    def norm(self) -> float:
        """Frobenius norm of the matrix."""
        return float(self.values_n.norm())

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
        share_n = self.values_n[self.values_n > 0]
        if not len(share_n):
            return 0.0
        share_n = share_n / share_n.sum()
        return float(torch.exp(-(share_n * share_n.log()).sum()))

    def energy(self, rank: int) -> float:
        """Share of the sum of squares that the best approximation of this rank keeps; 1 for a zero matrix."""
        squares = self.values_n.square()
        whole = float(squares.sum())
        return float(squares[:rank].sum()) / whole if whole > 0 else 1.0

    def rank_for(self, energy: float) -> int:
        """Smallest rank that keeps this share of the sum of squares, at least 1."""
        squares = self.values_n.square()
        # A hair less than asked for: rounding of the sum must not cost a rank.
        reached = squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)
        return min(self.true_rank, int(reached.int().argmax()) + 1)

    def lost(self, rank: int) -> float:
        """Frobenius norm of what the best approximation of this rank leaves out."""
        return float(self.values_n[rank:].norm())

    def truncated(self, rank: int) -> LowRank:
        """The best approximation of this rank."""
        return LowRank(self.up_on[:, :rank], self.down_ni[:rank])


def decompose(update: LowRank) -> Decomposition:
    """Singular values and vectors; cheap when the inner size is small. The two factors share every value evenly."""
    if update.rank < min(update.size):
        # Two thin QR decompositions leave an SVD of R x R, which costs next to nothing beside that of the whole matrix.
        left_oR, core_left = torch.linalg.qr(update.up_oR)
        right_iR, core_right = torch.linalg.qr(update.down_Ri.T)
        u_RR, values_n, v_RR = torch.linalg.svd(core_left @ core_right.T)
        root_n = values_n.sqrt()
        return Decomposition(left_oR @ u_RR * root_n, root_n[:, None] * (v_RR @ right_iR.T), values_n)
    return _decompose_matrix(update.matrix())


def _decompose_matrix(matrix_oi: Tensor) -> Decomposition:
    """By the eigenvectors of the smaller Gram matrix: several times faster than an SVD, and the product is exact."""
    if matrix_oi.shape[0] > matrix_oi.shape[1]:
        turned = _decompose_matrix(matrix_oi.T)
        return Decomposition(turned.down_ni.T, turned.up_on.T, turned.values_n)
    # Eigenvalues are squares, of which small ones drown in rounding: the norms of the projections are precise.
    _, vectors_oo = torch.linalg.eigh(matrix_oi @ matrix_oi.T)
    projected_oi = vectors_oo.T @ matrix_oi
    values_o, order_o = projected_oi.norm(dim=1).sort(descending=True)
    # A singular value of 0 has no direction: dividing by its root would give NaN.
    root_o = values_o.clamp(min=float(values_o[0]) * 1e-12 or 1.0).sqrt()
    return Decomposition(vectors_oo[:, order_o] * root_o, projected_oi[order_o] / root_o[:, None], values_o)
