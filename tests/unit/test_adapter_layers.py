"""Choosing layers: sets, ranks by block, regular expressions, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdlora.adapters.files.kohya import Part
from sdlora.adapters.live.layers import Target, block_of, choose, matches_block
from sdlora.config.adapter import AdapterConfig
from sdlora.errors import ConfigError


@cache
def models() -> Mapping[Part, nn.Module]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64, 64), cross_attention_dim=48, attention_head_dim=8, norm_num_groups=8
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=99, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
            )
        )
    return {"unet": unet, "text_encoder": text}


def targets(**settings: Any) -> dict[str, Target]:
    return {target.path: target for target in choose(models(), AdapterConfig(**settings)).targets}


def test_convolutions_have_their_own_rank_and_scale_but_projections_count_as_linear() -> None:
    chosen = targets(rank=8, alpha=8, conv_rank=4, conv_alpha=1, layers="all+conv")
    resnet = chosen["down_blocks.1.resnets.0.conv1"]
    assert (resnet.rank, resnet.scale) == (4, 0.25)
    for path in ("down_blocks.1.resnets.0.conv_shortcut", "down_blocks.0.attentions.0.proj_in"):
        assert (chosen[path].rank, chosen[path].scale) == (8, 1)
    assert chosen["down_blocks.1.resnets.0.time_emb_proj"].rank == 8


def test_block_ranks_keep_the_ratio_of_alpha_and_zero_leaves_a_block_out() -> None:
    chosen = targets(rank=8, alpha=4, block_ranks={"mid_block": 32, "*.attn2.to_k": 2, "down_blocks.0": 0})
    query = chosen["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    key = chosen["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    assert (query.rank, query.scale) == (32, 0.5)
    assert (key.rank, key.scale) == (2, 0.5)  # the last matching pattern wins
    assert not any(path.startswith("down_blocks.0.") for path in chosen)
    assert chosen["up_blocks.1.attentions.0.proj_in"].rank == 8


def test_a_block_prefix_ends_at_a_dot() -> None:
    assert matches_block("down_blocks.1", "unet", "down_blocks.1.resnets.0.conv1")
    assert not matches_block("down_blocks.1", "unet", "down_blocks.10.resnets.0.conv1")


def test_text_encoder_blocks_are_named_with_their_part() -> None:
    assert matches_block("text_encoder", "text_encoder", "encoder.layers.0.mlp.fc1")
    assert matches_block("text_encoder.encoder.layers.0", "text_encoder", "text_model.encoder.layers.0.mlp.fc1")
    assert not matches_block("text_encoder", "text_encoder_2", "encoder.layers.0.mlp.fc1")
    assert block_of("text_encoder", "text_model.encoder.layers.3.mlp.fc1") == "text_encoder.encoder.layers.3"
    assert block_of("unet", "mid_block.resnets.0.conv1") == "mid_block"


def test_an_unknown_block_pattern_lists_the_blocks_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'down_block\.1' matches no chosen layer; blocks .*down_blocks\.0, "):
        targets(block_ranks={"down_block.1": 4})


def test_a_block_pattern_behind_which_a_wider_one_stands_is_refused() -> None:
    assert targets(block_ranks={"down_blocks": 8, "down_blocks.0": 4})
    with pytest.raises(ConfigError, match=r"block_ranks: 'down_blocks\.0' has no effect: .* the last one counts"):
        targets(block_ranks={"down_blocks.0": 4, "down_blocks": 8})


def test_a_block_without_chosen_layers_is_a_setting_without_effect() -> None:
    with pytest.raises(ConfigError, match=r"'down_blocks\.3' matches no chosen layer"):
        targets(layers="attention", block_ranks={"down_blocks.3": 4})


def test_a_regular_expression_picks_from_what_other_tools_can_address() -> None:
    chosen = targets(layers=r"regex:attn2\.to_[kv]$|conv_in")
    assert len(chosen) == 32
    assert all(path.endswith(("attn2.to_k", "attn2.to_v")) for path in chosen)


@pytest.mark.parametrize("pattern", ["conv_in", "time_embedding", "nothing_like_this"])
def test_a_regular_expression_that_leaves_no_layer_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"no layer of the UNet that other tools can address .*down_blocks\.0"):
        targets(layers=f"regex:{pattern}")


def test_leaving_out_every_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="every layer is left out"):
        targets(block_ranks={"down_blocks": 0, "mid_block": 0, "up_blocks": 0})


def test_text_encoder_attention_is_always_all_four_projections() -> None:
    chosen = [path for path in targets(text_encoder=True, text_encoder_layers="attention") if "self_attn" in path]
    assert [path.rsplit(".", 1)[1] for path in sorted(chosen)][:4] == ["k_proj", "out_proj", "q_proj", "v_proj"]
    assert len(chosen) == 8
    assert not any("mlp" in path for path in targets(text_encoder=True, text_encoder_layers="attention"))


def test_a_rank_beyond_a_layers_size_is_kept_and_told() -> None:
    selection = choose(models(), AdapterConfig(rank=64, layers="attention"))
    assert {target.rank for target in selection.targets} == {64}
    assert len(selection.notes) == 1
    assert "layers are smaller than their rank (first: down_blocks.0" in selection.notes[0]


def test_rank_1_is_told_to_travel_badly() -> None:
    assert any("stable-diffusion.cpp" in note for note in choose(models(), AdapterConfig(rank=1)).notes)
