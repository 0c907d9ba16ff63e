"""Our adapters begin as LyCORIS' do and move as far with the same steps, so that its recipes' rates mean the same here.

First by formula, without LyCORIS: what the first values spread like, and how large an update is after one step. Then
beside LyCORIS' own modules for a dozen steps. `tests.benchmarks.lycoris_learning` does so for whole trainings.
"""

from __future__ import annotations

import math
import statistics
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sdlora.adapters.live.attach import attach
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from tests.support.copied_models import copy_of

RANK, RATE = 8, 1e-3
LINEAR = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
CONVOLUTION = "mid_block.resnets.0.conv1"
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"dora": True},
    "loha": {"algorithm": "loha"},
    "lokr": {"algorithm": "lokr"},
}
THEIRS = {
    "lora": "locon.LoConModule",
    "dora": "locon.LoConModule",
    "loha": "loha.LohaModule",
    "lokr": "lokr.LokrModule",
}


def our_layer(model: Path, path: str, seed: int, kind: str) -> tuple[BaseTunerLayer, dict[str, nn.Parameter]]:
    """One layer with our adapter, and what it trains."""
    bundle = copy_of(BaseModelConfig(model=str(model), precision="fp32"))
    config = AdapterConfig(rank=RANK, alpha=RANK, layers=f"regex:^{path}$".replace(".", r"\."), **SETTINGS[kind])
    adapter = attach(bundle, config, seed=seed)
    ((_, _, layer),) = adapter.modules()
    return layer, {weight.name.rpartition(".")[2]: weight.parameter for weight in adapter.weights()}


def slope_for(layer: nn.Module, step: int) -> Tensor:
    """The gradient of the layer's weight in a step, the same for both sides."""
    weight: Tensor = layer.weight
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))


def train(changed: Any, parameters: list[nn.Parameter], layer: nn.Module, steps: int) -> None:
    """AdamW against fixed slopes: `changed` gives the whole changed weight."""
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    for step in range(steps):
        optimizer.zero_grad()
        (changed() * slope_for(layer, step)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("path", [LINEAR, CONVOLUTION])
def test_first_values_spread_as_lycoris_draws_them(tiny_sd1: Path, path: str) -> None:
    layer, weights = our_layer(tiny_sd1, path, 0, "loha")
    spread = {name: float(weight.detach().std()) for name, weight in weights.items()}
    assert not weights["hada_w2_a"].any()
    assert spread["hada_w1_a"] == pytest.approx(0.1, rel=0.15)
    assert spread["hada_w1_b"] == pytest.approx(1.0, rel=0.15)
    assert spread["hada_w2_b"] == pytest.approx(1.0, rel=0.15)
    layer, weights = our_layer(tiny_sd1, path, 0, "lora")
    inputs = layer.get_base_layer().weight[0].numel()
    assert not weights["lora_B"].any()
    assert float(weights["lora_A"].std()) == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.1)


@pytest.mark.parametrize("path", [LINEAR, CONVOLUTION])
def test_the_first_step_moves_an_update_as_far_as_the_formula_says(tiny_sd1: Path, path: str) -> None:
    """Adam's first step moves each value of the factor that is 0 by the rate."""
    for kind in ("lora", "loha"):
        layer, weights = our_layer(tiny_sd1, path, 1, kind)
        base = layer.get_base_layer()
        outputs, inputs = base.weight.shape[0], base.weight[0].numel()
        train(lambda layer=layer: layer.get_delta_weight("default"), list(weights.values()), base, 1)
        found = float(layer.get_delta_weight("default").norm())
        # LoRA: each value is a sum of `rank` values of A with the rate and a sign. LoHa: the same of w2_b, of spread 1,
        # times w1 = w1_a w1_b, a sum of `rank` products of spread 0.1.
        lora = RATE * math.sqrt(outputs * inputs * RANK / (3 * inputs))
        loha = RATE * math.sqrt(outputs * inputs) * math.sqrt(RANK) * 0.1 * math.sqrt(RANK)
        assert found == pytest.approx(lora if kind == "lora" else loha, rel=0.25), kind


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("path", [LINEAR, CONVOLUTION])
def test_a_dozen_steps_move_an_update_as_far_as_lycoris_own(tiny_sd1: Path, path: str, kind: str) -> None:
    pytest.importorskip("lycoris.modules", reason="lycoris-lora is not installed")
    module_name, class_name = THEIRS[kind].split(".")
    module_class = getattr(import_module(f"lycoris.modules.{module_name}"), class_name)
    ours, theirs = [], []
    for seed in range(3):
        layer, weights = our_layer(tiny_sd1, path, seed, kind)
        base = layer.get_base_layer()
        start = base.weight.detach().clone()

        def changed(layer: Any = layer, base: nn.Module = base, weights: Any = weights) -> Tensor:
            whole: Tensor = base.weight + layer.get_delta_weight("default")
            if "magnitude" in weights:
                shape = (-1, *[1] * (whole.ndim - 1))
                # No gradient through the norm, as in the paper and in the layer.
                whole = whole * (weights["magnitude"].flatten() / whole.flatten(1).norm(dim=1).detach()).reshape(shape)
            return whole

        train(changed, list(weights.values()), base, 12)
        ours.append(float((changed() - start).norm()))
        torch.manual_seed(seed)
        module = module_class("layer", base, 1.0, lora_dim=RANK, alpha=RANK, weight_decompose=kind == "dora")
        parameters = [one for one in module.parameters() if one.requires_grad]
        train(lambda module=module, start=start: module.get_merged_weight(1.0, start.shape)[0], parameters, base, 12)
        theirs.append(float((module.get_merged_weight(1.0, start.shape)[0] - start).norm()))
    assert statistics.mean(ours) == pytest.approx(statistics.mean(theirs), rel=0.1), (ours, theirs)
