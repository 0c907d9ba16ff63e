"""Training steps in fp32, bf16 and fp16, for real on the CPU."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from sdlora.training.optimization.precision import PrecisionContext

CPU = torch.device("cpu")


class Run:
    """A tiny regression trained through a PrecisionContext."""

    def __init__(self, precision: str, learning_rate: float = 1e-2) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=learning_rate, fused=True)
        self.context = PrecisionContext(precision, CPU)  # type: ignore[arg-type]
        self.inputs = torch.randn(64, 8)
        self.wanted = self.inputs.sum(1, keepdim=True)

    def backward(self) -> float:
        with self.context.autocast():
            predicted = self.net(self.inputs)
        self.output_dtype = predicted.dtype
        loss = nn.functional.mse_loss(predicted.float(), self.wanted)
        self.context.backward(loss)
        return loss.item()

    def step(self, spoil: float | None = None) -> tuple[float, float, bool]:
        loss = self.backward()
        if spoil is not None:
            self.net[0].weight.grad[0, 0] = spoil  # type: ignore[union-attr]
        norm = self.context.unscale_and_clip(self.optimizer, 1.0)
        applied = self.context.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, applied

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.net.parameters()]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_training_in_each_precision_lowers_the_loss_with_fp32_weights(precision, dtype):
    run = Run(precision)
    losses = [run.step()[0] for _ in range(150)]
    assert run.output_dtype == dtype
    assert losses[-1] < 0.1 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in run.net.parameters())


def test_fp16_overflow_is_skipped_and_halves_the_scale():
    run = Run("fp16")
    for _ in range(5):
        run.step()
    before, scale = run.weights(), run.context.scale
    _, norm, applied = run.step(spoil=math.inf)
    assert not applied
    assert not math.isfinite(norm)
    assert run.context.scale == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))
    assert run.step()[2]


def test_true_overflow_of_fp16_lowers_the_scale_until_steps_go_through():
    """Loss values near fp16's limit: the scaled gradients overflow by themselves at the initial scale."""
    run = Run("fp16")
    run.wanted = run.wanted * 500
    outcomes = [run.step()[2] for _ in range(25)]
    assert not outcomes[0]
    assert outcomes[-1]
    assert 0 < run.context.scale < 65536


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_non_finite_gradient_never_reaches_the_weights(precision):
    run = Run(precision)
    before = run.weights()
    assert not run.step(spoil=math.nan)[2]
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))
    assert run.context.scale == 1.0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_acts_on_all_weights_and_reports_the_norm_before(precision):
    run = Run(precision)
    while True:  # let fp16 find its scale
        run.optimizer.zero_grad()
        run.backward()
        norm = run.context.unscale_and_clip(run.optimizer, 0.01)
        if math.isfinite(norm):
            break
        run.context.step(run.optimizer)
    clipped = [parameter.grad.flatten() for parameter in run.net.parameters()]  # type: ignore[union-attr]
    run_fp32 = Run("fp32")
    run_fp32.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in run_fp32.net.parameters()])  # type: ignore[union-attr]
    assert norm == pytest.approx(expected.norm().item(), rel=1e-2)
    assert torch.cat(clipped).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_maximum_norm_zero_does_not_clip():
    run = Run("fp32")
    run.backward()
    before = [parameter.grad.clone() for parameter in run.net.parameters()]  # type: ignore[union-attr]
    norm = run.context.unscale_and_clip(run.optimizer, 0.0)
    assert norm == pytest.approx(torch.cat([gradient.flatten() for gradient in before]).norm().item(), rel=1e-5)
    for gradient, parameter in zip(before, run.net.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)  # type: ignore[arg-type]


def test_fp16_goes_on_exactly_from_a_saved_scale():
    whole, resumed = Run("fp16"), Run("fp16")
    for _ in range(10):
        whole.step()
    whole.step(spoil=math.inf)
    saved = whole.context.state_dict()
    resumed.net.load_state_dict(whole.net.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))  # else they share tensors
    resumed.context.load_state_dict(saved)
    for _ in range(5):
        assert whole.step() == resumed.step()
    assert whole.context.state_dict() == resumed.context.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(whole.weights(), resumed.weights(), strict=True))


def test_saved_scale_is_ignored_by_a_precision_that_has_none():
    context = PrecisionContext("bf16", CPU)
    context.load_state_dict(PrecisionContext("fp16", CPU).state_dict())
    assert context.scale == 1.0
    assert context.state_dict() == {}
