"""The smallest LoRA whose answer is known: a frozen map whose target is the same map with 1 added to every weight.

The update that is looked for, a matrix of ones, has rank 1. With unit normal inputs each output is off by the sum of
1,001 of them, so the squared error begins near 1,001 and a rank-1 adapter can bring it to 0.
"""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sdlora.config.objective import ObjectiveConfig
from sdlora.config.optimization import OptimizationConfig
from sdlora.models.schedule import NoiseSchedule
from sdlora.training.loss.objective import loss_per_image
from sdlora.training.optimization.optimizers import build, set_learning_rates
from sdlora.training.optimization.parameter_groups import ParameterGroup
from sdlora.training.optimization.precision import PrecisionContext
from sdlora.training.optimization.schedules import factor

INPUTS, OUTPUTS, STEPS, BATCH = 1001, 1000, 800, 32
CPU = torch.device("cpu")


class FrozenMap(nn.Module):
    """One linear layer from 1,001 to 1,000 values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, OUTPUTS, bias=False)

    def forward(self, inputs_BI: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs_BI)


def train() -> tuple[nn.Module, list[float]]:
    """The trained PEFT model and the loss of every step."""
    torch.manual_seed(0)
    base = FrozenMap()
    shifted = copy.deepcopy(base).requires_grad_(False)
    shifted.linear.weight += 1.0
    model = get_peft_model(base, LoraConfig(r=1, lora_alpha=1, target_modules=["linear"]))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = OptimizationConfig(learning_rate=0.03, weight_decay=0.0, schedule="cosine", warmup=10, steps=STEPS)
    groups = [ParameterGroup("adapter", parameters, config.learning_rate, config.weight_decay)]
    optimizer, context = build(groups, config, CPU), PrecisionContext("fp32", CPU)
    losses = []
    for step in range(STEPS):
        inputs_BI = torch.randn((BATCH, INPUTS), generator=torch.Generator().manual_seed(step))
        with context.autocast():
            predicted, wanted = (net(inputs_BI).reshape(BATCH, 1, 1, OUTPUTS) for net in (model, shifted))
        loss_B = loss_per_image(
            predicted,
            wanted,
            torch.zeros(BATCH, dtype=torch.long),
            ObjectiveConfig(),
            schedule=NoiseSchedule.of_alphas(torch.tensor([0.5])),
        )
        context.backward(loss_B.mean())
        losses.append(loss_B.mean().item())
        set_learning_rates(optimizer, groups, factor(step, STEPS, config))
        context.unscale_and_clip(optimizer, 0.0)
        assert context.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    return model, losses


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[float]]:
    return train()


def test_rank_1_adapter_trains_2001_parameters(trained):
    model, _ = trained
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 2001


def test_loss_falls_from_about_a_thousand_to_below_a_hundredth(trained):
    _, losses = trained
    assert losses[0] == pytest.approx(1001, rel=0.2)
    assert max(losses[-5:]) < 0.01


def test_learned_update_is_a_matrix_of_ones(trained):
    layer = trained[0].base_model.model.linear
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    torch.testing.assert_close(update, torch.ones(OUTPUTS, INPUTS), atol=0.01, rtol=0)


def test_merging_the_adapter_does_not_change_the_output(trained):
    model = copy.deepcopy(trained[0]).eval()
    inputs_BI = torch.randn((8, INPUTS), generator=torch.Generator().manual_seed(12345))
    with torch.no_grad():
        live = model(inputs_BI)
        merged = model.merge_and_unload()(inputs_BI)
    assert (live - merged).abs().max().item() < 1e-4
