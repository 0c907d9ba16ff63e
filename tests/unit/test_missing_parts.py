"""Base models that lack a part, or have another in its place: refused by the dry run, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig
from sdlora.errors import ModelError, SdloraError
from sdlora.generation.request.requests import resolve
from sdlora.models.completeness import check_parts, check_vae
from sdlora.models.detection import detect
from sdlora.training.preflight.summary import summarise


def _without(part: str) -> Callable[[Path], None]:
    return lambda model: shutil.rmtree(model / part)


def _as_variant(model: Path) -> None:
    for path in [*model.rglob("*.safetensors")]:
        path.rename(path.with_suffix(".fp16.safetensors"))


def _of_16_channels(model: Path) -> None:
    config = model / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latent_channels": 16}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("vae"), "model/vae: can't be loaded: there is no such folder"),
        (_without("text_encoder"), "model/text_encoder: can't be loaded: there is no such folder"),
        (_without("tokenizer"), "model/tokenizer: has no vocabulary"),
        (_as_variant, r"model/unet: can't be loaded \(it has the variant fp16: set base_model.variant\)"),
        (_of_16_channels, "model/vae: is a VAE for latents of 16 channels"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_before_anything_is_loaded(
    tiny_sd1: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    model = shutil.copytree(tiny_sd1, tmp_path / "model")
    check_parts(BaseModelConfig(model=str(model)), "sd1")
    spoil(model)
    with pytest.raises(ModelError, match=words):
        check_parts(BaseModelConfig(model=str(model)), "sd1")
    with pytest.raises(SdloraError, match=words):
        resolve(GenerateConfig(prompt="a fox", base_model=BaseModelConfig(model=str(model))))
    with pytest.raises(SdloraError, match=words):
        summarise({"preset": "demo.yaml", "base_model": {"model": str(model)}, "name": "x"})


def test_a_variant_that_is_asked_for_is_enough(tiny_sd1: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd1, tmp_path / "model")
    _as_variant(model)
    check_parts(BaseModelConfig(model=str(model), variant="fp16"), "sd1")
    with pytest.raises(ModelError, match="unet: can't be loaded .* holds no weights of the variant bf16"):
        check_parts(BaseModelConfig(model=str(model), variant="bf16"), "sd1")


def test_what_is_no_vae_is_refused_as_one(tiny_sd1: Path, tmp_path: Path) -> None:
    check_vae(str(tiny_sd1))
    check_vae(str(tiny_sd1 / "vae"))
    with pytest.raises(ModelError, match="holds no VAE of Stable Diffusion, which base_model.vae must be"):
        check_vae(str(tiny_sd1 / "unet" / "diffusion_pytorch_model.safetensors"))
    with pytest.raises(ModelError, match="is of the kind UNet2DConditionModel, not AutoencoderKL"):
        check_vae(str(tiny_sd1 / "unet"))
    weights = load_file(tiny_sd1 / "vae" / "diffusion_pytorch_model.safetensors")
    weights["decoder.conv_in.weight"] = torch.ones(64, 16, 3, 3)
    save_file(weights, tmp_path / "flux.safetensors")
    with pytest.raises(ModelError, match="is a VAE for latents of 16 channels, such as Flux"):
        check_vae(str(tmp_path / "flux.safetensors"))


def test_a_latent_consistency_model_is_refused(tiny_sd1: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd1, tmp_path / "model")
    config = model / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": 256}))
    with pytest.raises(ModelError, match="this is a latent consistency model, whose UNet is told the guidance"):
        detect(BaseModelConfig(model=str(model)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ip_adapter.1.to_k_ip.weight", "this is an IP-Adapter"),
        ("conv_first.weight", "this is an upscaler"),
        ("model.1.sub.0.RDB1.conv1.0.weight", "this is an upscaler"),
        ("input_blocks.0.0.weight", "this is the UNet alone, without text encoder and VAE"),
    ],
)
def test_what_stands_in_place_of_a_base_model_is_named(tmp_path: Path, name: str, words: str) -> None:
    save_file({name: torch.ones(4, 4, 1, 1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=words):
        detect(BaseModelConfig(model=str(tmp_path / "x.safetensors")))
