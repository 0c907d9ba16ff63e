"""Riemannian preconditioned LoRA: what it does to gradients, against the formula of its paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdlora.config import files
from sdlora.errors import ConfigError
from sdlora.training.optimization.riemannian import precondition


def a_pair(ratio: float, kernel: int = 1) -> tuple[nn.Parameter, nn.Parameter, Tensor]:
    """A and B whose product is the same at every ratio, with the gradients of one loss; and the product's gradient."""
    draws = torch.Generator().manual_seed(0)
    shapes = ((3, 6), (5, 3)) if kernel == 1 else ((3, 6, kernel, kernel), (5, 3, 1, 1))
    down, up = (nn.Parameter(torch.randn(shape, generator=draws)) for shape in shapes)
    down.data.mul_(ratio)
    up.data.div_(ratio)
    slope = torch.randn(5, down[0].numel(), generator=draws)
    ((up.flatten(1) @ down.flatten(1)) * slope).sum().backward()
    return down, up, slope


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_are_divided_by_the_other_factors_gram_matrix(kernel: int) -> None:
    down, up, slope = a_pair(1.0, kernel)
    a, b = (parameter.detach().flatten(1).double().numpy() for parameter in (down, up))
    damped = 1e-6 * np.eye(3)
    precondition([(down, up)])
    expected = np.linalg.inv(b.T @ b + damped) @ b.T @ slope.double().numpy()
    np.testing.assert_allclose(down.grad.flatten(1), expected, rtol=2e-3, atol=1e-4)
    expected = slope.double().numpy() @ a.T @ np.linalg.inv(a @ a.T + damped)
    np.testing.assert_allclose(up.grad.flatten(1), expected, rtol=2e-3, atol=1e-4)


def test_a_step_moves_the_update_alike_however_it_is_divided_between_the_factors() -> None:
    moves = []
    for ratio in (1.0, 5.0):
        down, up, _ = a_pair(ratio)
        precondition([(down, up)])
        moves.append(up.grad @ down.detach() + up.detach() @ down.grad)
    torch.testing.assert_close(moves[0], moves[1], rtol=1e-3, atol=1e-3)


def test_layers_without_gradients_stay_as_they_are() -> None:
    down, up = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.zeros(4, 2))
    precondition([(down, up)])
    assert down.grad is None
    down.grad, up.grad = torch.zeros(2, 4), torch.ones(4, 2)
    precondition([(down, up)])
    assert not down.grad.any()
    assert torch.isfinite(up.grad).all()


@pytest.mark.parametrize("other", ["adapter.algorithm=loha", "adapter.algorithm=lokr"])
def test_other_algorithms_are_refused(other: str) -> None:
    with pytest.raises(ConfigError, match=r"precondition goes with layers of adapter.algorithm=lora only"):
        files.load(overrides=["optimization.precondition=true", other])
