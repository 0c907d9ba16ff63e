"""Muon on matrices and AdamW on the rest, over one flat fp32 master copy of bf16 parameters.

Muon (Jordan et al. 2024; step size as in Liu et al. 2025, "Muon is scalable for LLM training") replaces a
matrix's momentum by about the nearest orthogonal matrix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from .workers import average

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
MIN_SIDE = 16
"""Matrices with a shorter side (first and last convolutions) are left to AdamW."""


def ordered_parameters(modules: list[nn.Module]) -> tuple[list[nn.Parameter], int]:
    """Trainable parameters, those for Muon first, and how many of them are Muon's."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (matrices if _is_matrix(name, parameter) else others).append(parameter)
    return matrices + others, len(matrices)


def unflatten(flat: Tensor, modules: list[nn.Module]) -> None:
    """Copy a flat tensor, in the order of `MasterWeights.master`, into the modules' parameters."""
    offset = 0
    for parameter in ordered_parameters(modules)[0]:
        values = flat[offset : offset + parameter.numel()]
        parameter.data.copy_(values.view(parameter.shape))
        offset += parameter.numel()
    assert offset == flat.numel(), "the checkpoint is of another architecture"


def orthogonalise(matrix: Tensor) -> Tensor:
    """About the nearest matrix with all singular values 1, by five Newton-Schulz iterations in bf16."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class MasterWeights:
    """bf16 parameters that follow one flat fp32 copy.

    All parameters (and their gradients) become views of one flat bf16 tensor, so that averaging, clipping and
    copying are single large operations. `master` holds the matrices first.
    """

    def __init__(self, modules: list[nn.Module], betas: tuple[float, float] = (0.9, 0.95), decay: float = 0.0) -> None:
        self.parameters, num_matrices = ordered_parameters(modules)
        self.matrices = self.parameters[:num_matrices]
        self.split = sum(parameter.numel() for parameter in self.matrices)
        self.decay = decay
        self.master = torch.cat([parameter.detach().float().flatten() for parameter in self.parameters])
        self.momentum = torch.zeros(self.split)
        self.rest = nn.Parameter(self.master[self.split :])
        self.optimizer = torch.optim.AdamW([self.rest], betas=betas, weight_decay=0.0, fused=True)
        self.shadow = self.master.bfloat16()
        self.gradient = torch.zeros_like(self.shadow)
        offset = 0
        for parameter in self.parameters:
            here = slice(offset, offset + parameter.numel())
            parameter.data = self.shadow[here].view(parameter.shape)
            parameter.grad = self.gradient[here].view(parameter.shape)
            offset += parameter.numel()

    def step(self, learning_rate: float, num_workers: int, max_norm: float = 1.0) -> float:
        """Average the gradients over the workers, clip, update, clear. Returns the gradient norm before it."""
        average(self.gradient, num_workers)
        gradient = self.gradient.float()
        self.gradient.zero_()
        norm = float(gradient.norm())
        if norm == norm:  # a NaN gradient is skipped
            gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
            self._step_matrices(gradient[: self.split], learning_rate, num_workers)
            self.rest.grad = gradient[self.split :]
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
            self.shadow.copy_(self.master)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The master copy and the optimizers' moments."""
        return {"master": self.master, "momentum": self.momentum, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.master.copy_(state["master"])
        self.momentum.copy_(state["momentum"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.shadow.copy_(self.master)

    def _step_matrices(self, gradient: Tensor, learning_rate: float, num_workers: int) -> None:
        """Each worker orthogonalises its share of the matrices; the sum of the shares is the update."""
        self.momentum.lerp_(gradient, 1 - MOMENTUM)
        nesterov = gradient.lerp(self.momentum, MOMENTUM)
        update = torch.zeros(self.split, dtype=torch.bfloat16)
        rank = torch.distributed.get_rank() if num_workers > 1 else 0
        offset = 0
        for index, parameter in enumerate(self.matrices):
            here = slice(offset, offset + parameter.numel())
            if index % num_workers == rank:
                matrix = nesterov[here].view(parameter.shape[0], -1)
                update[here] = orthogonalise(matrix).flatten() * (0.2 * max(matrix.shape) ** 0.5)
            offset += parameter.numel()
        if num_workers > 1:
            torch.distributed.all_reduce(update)
        matrices = self.master[: self.split]
        matrices.mul_(1 - learning_rate * self.decay).sub_(update.float(), alpha=learning_rate)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    if parameter.ndim < 2 or "embeddings" in name:
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= MIN_SIDE
