"""Original (LDM) names against diffusers' own conversion, for every weight of every family at true size."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.config.base_model import FamilyName
from sdlora.models.configs import fit_unet, fit_vae, shipped_configs
from tests.support.original_names import original_unet_name, original_vae_name


@pytest.mark.parametrize(
    ("family", "part", "weights"),
    [
        ("sd1", "unet", 859_520_964),
        ("sd1", "vae", 83_653_863),
        ("sd1", "text_encoder", 123_060_480),
        ("sd2", "unet", 865_910_724),
        ("sd2", "text_encoder", 340_387_840),
        ("sdxl", "unet", 2_567_463_684),
        ("sdxl", "vae", 83_653_863),
        ("sdxl", "text_encoder", 123_060_480),
        ("sdxl", "text_encoder_2", 694_659_840),
    ],
)
def test_the_shipped_configs_give_the_published_number_of_weights(family: FamilyName, part: str, weights: int) -> None:
    config = shipped_configs(family)[part]
    with torch.device("meta"):
        if part == "unet":
            module = UNet2DConditionModel.from_config(config)
        elif part == "vae":
            module = AutoencoderKL.from_config(config)
        else:
            projected = config["architectures"] == ["CLIPTextModelWithProjection"]
            module = (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))
    assert sum(parameter.numel() for parameter in module.parameters()) == weights


@pytest.mark.parametrize(("family", "weights"), [("sd1", 686), ("sd2", 686), ("sdxl", 1680)])
def test_unet_names_there_and_back_are_the_same_for_every_weight(family: FamilyName, weights: int) -> None:
    config = shipped_configs(family)["unet"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    attentions = ["CrossAttn" in kind for kind in config["up_block_types"]]
    original = {original_unet_name(name, 2, attentions): tensor for name, tensor in unet.state_dict().items()}
    assert len(original) == weights
    converted = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{name}": tensor for name, tensor in original.items()}, config
    )
    assert {name: id(tensor) for name, tensor in converted.items()} == {
        name: id(original[original_unet_name(name, 2, attentions)]) for name in unet.state_dict()
    }
    fitted = fit_unet(config, {name: tuple(tensor.shape) for name, tensor in original.items()})
    assert {**fitted, "use_linear_projection": config.get("use_linear_projection", False)} == {
        **config,
        "use_linear_projection": fitted["use_linear_projection"],
    }


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_vae_names_there_and_back_are_the_same_for_every_weight(family: FamilyName) -> None:
    config = shipped_configs(family)["vae"]
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    original = {original_vae_name(name, 4): tensor for name, tensor in vae.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in original.items()}
    assert len(original) == len(vae.state_dict())
    converted = convert_ldm_vae_checkpoint({f"first_stage_model.{name}": t for name, t in original.items()}, config)
    assert converted.keys() == vae.state_dict().keys()
    assert all(tuple(converted[name].shape) == shapes[original_vae_name(name, 4)] for name in vae.state_dict())
    assert fit_vae(config, shapes) == config
