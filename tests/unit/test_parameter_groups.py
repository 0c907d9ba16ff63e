"""Learning rates by part, block and factor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdlora.adapters.live.attach import Weight
from sdlora.adapters.live.layers import block_of
from sdlora.config.optimization import OptimizationConfig
from sdlora.errors import ConfigError
from sdlora.training.optimization.parameter_groups import parameter_groups, trained_parameters

PATHS = [
    ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
    ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
    ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
    ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
    ("text_encoder_2", "encoder.layers.0.self_attn.q_proj"),
]


def weights(with_magnitude: bool = False) -> list[Weight]:
    names = ["lora_A", "lora_B"] + (["magnitude"] if with_magnitude else [])
    return [
        Weight(
            f"{part}.{path}.{name}", part, path, block_of(part, path), nn.Parameter(torch.zeros(2)), name == "lora_B"
        )
        for part, path in PATHS
        for name in names
    ]


def rates(config: OptimizationConfig, **options) -> dict[str, float]:
    return {group.name: group.learning_rate for group in parameter_groups(weights(**options), config)}


def test_each_part_is_one_group_and_text_encoders_learn_at_half_the_rate():
    groups = parameter_groups(weights(), OptimizationConfig(learning_rate=2e-4))
    assert {group.name: group.learning_rate for group in groups} == {
        "unet": 2e-4,
        "text_encoder": 1e-4,
        "text_encoder_2": 1e-4,
    }
    assert [len(group.parameters) for group in groups] == [6, 2, 2]
    assert {group.weight_decay for group in groups} == {0.01}


def test_every_weight_is_in_exactly_one_group():
    given = weights(with_magnitude=True)
    config = OptimizationConfig(lora_plus_ratio=16, block_learning_rates={"mid_block": 2.0})
    grouped = trained_parameters(parameter_groups(given, config))
    assert sorted(map(id, grouped)) == sorted(id(weight.parameter) for weight in given)


def test_lora_plus_raises_the_rate_of_b_only():
    config = OptimizationConfig(learning_rate=1e-4, text_encoder_learning_rate=5e-5, lora_plus_ratio=16)
    assert rates(config) == pytest.approx(
        {
            "unet": 1e-4,
            "unet B": 1.6e-3,
            "text_encoder": 5e-5,
            "text_encoder B": 8e-4,
            "text_encoder_2": 5e-5,
            "text_encoder_2 B": 8e-4,
        }
    )


def test_block_factors_multiply_and_the_last_matching_pattern_wins():
    config = OptimizationConfig(
        learning_rate=1e-4,
        text_encoder_learning_rate=1e-5,
        text_encoder_2_learning_rate=3e-5,
        block_learning_rates={"unet": 0.5, "down_blocks.1": 1.0, "mid_block": 3.0},
    )
    assert rates(config) == pytest.approx(
        {
            "unet unet": 5e-5,
            "unet": 1e-4,
            "unet mid_block": 3e-4,
            "text_encoder": 1e-5,
            "text_encoder_2": 3e-5,
        }
    )


def test_text_encoder_block_is_named_without_repeating_its_part():
    config = OptimizationConfig(block_learning_rates={"text_encoder.encoder.layers.0": 0.5})
    assert "text_encoder encoder.layers.0" in rates(config)


def test_rate_zero_leaves_weights_out():
    config = OptimizationConfig(text_encoder_learning_rate=0.0, block_learning_rates={"down_blocks.0": 0.0})
    groups = parameter_groups(weights(), config)
    assert [(group.name, len(group.parameters)) for group in groups] == [("unet", 4)]


def test_magnitudes_of_dora_are_not_decayed():
    groups = parameter_groups(weights(with_magnitude=True), OptimizationConfig(weight_decay=0.1))
    assert {group.name: group.weight_decay for group in groups if group.name.startswith("unet")} == {
        "unet": 0.1,
        "unet magnitude": 0.0,
    }


def test_block_pattern_that_matches_nothing_is_refused_with_the_blocks_there_are():
    config = OptimizationConfig(block_learning_rates={"down_block.0": 0.5, "mid_block": 2.0})
    with pytest.raises(
        ConfigError, match=r"'down_block.0' matches no trained layer, trained blocks are: down_blocks.0"
    ):
        parameter_groups(weights(), config)


def test_nothing_left_to_train_is_refused():
    config = OptimizationConfig(text_encoder_learning_rate=0.0, block_learning_rates={"unet": 0.0})
    with pytest.raises(ConfigError, match="every learning rate is 0, nothing remains to train"):
        parameter_groups(weights(), config)
