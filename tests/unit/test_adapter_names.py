"""Kohya names against the golden key lists of the true SD 1.5, SD 2.1 and SDXL (all+conv with text encoders)."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.adapters.files.kohya import Part, canonical, from_ldm, kohya_name, kohya_names, module_path, prefix, to_ldm
from sdlora.adapters.live.layers import choose
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import FamilyName
from sdlora.models.configs import shipped_configs

DATA = Path(__file__).parents[1] / "data"
FAMILY_NAMES = get_args(FamilyName)


def golden_names(family: FamilyName) -> list[str]:
    return gzip.decompress((DATA / f"kohya_names_{family}.txt.gz").read_bytes()).decode().split()


@cache
def true_models(family: FamilyName) -> Mapping[Part, nn.Module]:
    """The family's modules in true size, without memory."""
    configs = shipped_configs(family, "epsilon")
    models: dict[Part, nn.Module] = {}
    with torch.device("meta"):
        models["unet"] = UNet2DConditionModel.from_config(configs["unet"])
        for part in ("text_encoder", "text_encoder_2"):
            if part in configs:
                projects = configs[part]["architectures"] == ["CLIPTextModelWithProjection"]
                kind = CLIPTextModelWithProjection if projects else CLIPTextModel
                models[part] = kind(CLIPTextConfig(**configs[part]))
    return models


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_all_conv_layers_have_exactly_the_golden_names(family: FamilyName) -> None:
    selection = choose(true_models(family), AdapterConfig(layers="all+conv", text_encoder=True))
    names = [kohya_name(target.part, target.path, family) for target in selection.targets]
    assert sorted(names) == golden_names(family)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_names_and_paths_are_one_to_one(family: FamilyName) -> None:
    selection = choose(true_models(family), AdapterConfig(layers="all+conv", text_encoder=True))
    places = [(target.part, target.path) for target in selection.targets]
    assert len(kohya_names(places, family)) == len(places)
    for part, path in places:
        found = module_path(kohya_name(part, path, family), family)
        level = "" if part == "unet" else "text_model."
        assert found == (part, level + path.removeprefix(level))


@pytest.mark.parametrize(
    ("family", "layers", "unet", "text"),
    [
        ("sd1", "attention", 128, 0),
        ("sd1", "attention+ff", 160, 0),
        ("sd1", "all", 192, 72),
        ("sd1", "all+conv", 278, 72),
        ("sd2", "all+conv", 278, 138),
        ("sdxl", "all", 722, 264),
        ("sdxl", "all+conv", 788, 264),
    ],
)
def test_layer_sets_have_kohyas_number_of_modules(family: FamilyName, layers: str, unet: int, text: int) -> None:
    targets = choose(true_models(family), AdapterConfig(layers=layers, text_encoder=text > 0)).targets
    assert sum(target.part == "unet" for target in targets) == unet
    assert sum(target.part != "unet" for target in targets) == text


def test_golden_names_hold_nothing_that_other_tools_ignore() -> None:
    for family in FAMILY_NAMES:
        for name in golden_names(family):
            assert not any(word in name for word in ("conv_in", "conv_out", "time_embed", "add_embed", "label_emb"))
            assert "text_projection" not in name
            assert name.startswith("lora_unet_") or "_text_model_encoder_layers_" in name
            assert not name.endswith("to_out")


def test_text_encoder_names_have_text_model_whatever_transformers_calls_it() -> None:
    expected = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert kohya_name("text_encoder", "encoder.layers.0.mlp.fc1", "sd1") == expected
    assert kohya_name("text_encoder", "text_model.encoder.layers.0.mlp.fc1", "sd1") == expected


def test_text_encoders_have_the_prefixes_that_kohya_gives_them() -> None:
    assert (prefix("text_encoder", "sd1"), prefix("text_encoder", "sd2")) == ("lora_te", "lora_te")
    assert (prefix("text_encoder", "sdxl"), prefix("text_encoder_2", "sdxl")) == ("lora_te1", "lora_te2")


@pytest.mark.parametrize(
    ("diffusers", "original"),
    [
        (
            "down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_k",
            "input_blocks_4_1_transformer_blocks_1_attn2_to_k",
        ),
        ("down_blocks_0_downsamplers_0_conv", "input_blocks_3_0_op"),
        ("up_blocks_0_upsamplers_0_conv", "output_blocks_2_2_conv"),
        ("mid_block_resnets_1_conv2", "middle_block_2_out_layers_3"),
        ("up_blocks_2_resnets_2_conv_shortcut", "output_blocks_8_0_skip_connection"),
    ],
)
def test_sdxl_layers_have_their_original_names(diffusers: str, original: str) -> None:
    assert to_ldm(diffusers) == original
    assert from_ldm(original) == diffusers


def test_other_spellings_become_the_one_we_write() -> None:
    assert canonical("lora_unet_mid_block_attentions_0_proj_in", "sdxl") == "lora_unet_middle_block_1_proj_in"
    assert canonical("lora_te1_text_model_encoder_layers_0_mlp_fc1", "sd1").startswith("lora_te_text_model_")
    assert canonical("lora_te_encoder_layers_0_mlp_fc1", "sd2") == "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert canonical("lora_te_text_model_encoder_layers_0_mlp_fc1", "sdxl").startswith("lora_te1_text_model_")


def test_a_name_of_something_else_has_no_path() -> None:
    assert module_path("lycoris_unet_mid_block_attentions_0_proj_in", "sd1") is None
    assert module_path("lora_te2_text_model_encoder_layers_0_mlp_fc1", "sd1") is None
