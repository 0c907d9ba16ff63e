"""LoRA's gradients measured in the space of its updates (Riemannian preconditioned LoRA, Zhang and Pilanci 2024).

How far a step of A moves the update B A hangs on the size of B, and the other way round. Multiplied by (B'B)^-1 and
(A A')^-1 gradients no longer depend on how the update is divided between the two factors (section 3, equation 4). Done
before the optimizer it gives the paper's scaled AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sdlora.adapters.live.attach import Weight

Pair = tuple[nn.Parameter, nn.Parameter]
_DAMPING = 1e-6
"""Added to the diagonal, as in the paper: B'B begins at 0."""


def factor_pairs(weights: Iterable[Weight]) -> list[Pair]:
    """A and B of every LoRA layer among the trained weights."""
    factors: dict[tuple[str, str], dict[str, nn.Parameter]] = defaultdict(dict)
    for weight in weights:
        name = weight.name.rpartition(".")[2]
        if name in ("lora_A", "lora_B"):
            factors[weight.part, weight.path][name] = weight.parameter
    return [(pair["lora_A"], pair["lora_B"]) for pair in factors.values()]


@torch.no_grad()
def precondition(pairs: Sequence[Pair]) -> None:
    """Replace the gradients of all pairs, in place. A pair without gradients stays as it is."""
    for down, up in pairs:
        if down.grad is None or up.grad is None:
            continue
        # Convolutions hold [rank, in, height, width] and [out, rank, 1, 1].
        a, b = down.flatten(1), up.flatten(1)
        down.grad.copy_(torch.linalg.solve(_damped(b.T @ b), down.grad.flatten(1)).reshape(down.shape))
        up.grad.copy_(torch.linalg.solve(_damped(a @ a.T), up.grad.flatten(1).T).T.reshape(up.shape))


def _damped(gram: Tensor) -> Tensor:
    return gram + _DAMPING * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
