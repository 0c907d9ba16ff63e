"""Base models with a moving average beside or instead of their weights, and folders with quantised parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import ModelError
from sdlora.models.detection import detect
from sdlora.models.loading import load_vae
from tests.support.base_headers import SD1, SD1_UNET, UNET, folder, safetensors

AVERAGED = {
    f"model_ema.{name.removeprefix('model.').replace('.', '')}": shape
    for name, shape in SD1.items()
    if name.startswith(UNET)
}


def test_a_moving_average_beside_the_weights_is_said_not_to_be_used(tmp_path: Path) -> None:
    model = safetensors(tmp_path / "full-ema.safetensors", {**SD1, **AVERAGED})
    for prediction in ("auto", "epsilon"):
        notes = detect(BaseModelConfig(model=str(model), prediction=prediction)).notes
        assert f"{len(AVERAGED)} tensors of a moving average (model_ema.*) are not used" in notes[-1]


def test_a_moving_average_alone_is_named(tmp_path: Path) -> None:
    others = {name: shape for name, shape in SD1.items() if not name.startswith(UNET)}
    model = safetensors(tmp_path / "ema.safetensors", {**others, **AVERAGED})
    with pytest.raises(ModelError, match=r"the UNet as a moving average only .model_ema.*take the file that holds"):
        detect(BaseModelConfig(model=str(model)))


def parts(path: Path, **tensors: dict[str, Tensor]) -> Path:
    """A folder whose parts have these tensors, in files of the names that loaders look for."""
    model = folder(path, SD1_UNET, {"text_encoder": ["transformers", "CLIPTextModel"]})
    for part, own in tensors.items():
        (model / part).mkdir(exist_ok=True)
        name = "model" if part.startswith("text") else "diffusion_pytorch_model"
        save_file(own, model / part / f"{name}.safetensors")
    return model


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": torch.ones(2, 2, dtype=torch.int8)}, "1 weights are whole numbers, such as a.weight in I8"),
        ({"a.weight": torch.ones(2, 2, dtype=torch.uint8)}, "a.weight in U8: quantised"),
        ({"a.weight": torch.ones(2, 2), "a.weight_scale": torch.ones(1)}, "a.weight_scale goes with some of them"),
        ({"a.weight._data": torch.ones(2, 2, dtype=torch.int8)}, "a.weight._data goes with some of them"),
    ],
)
def test_quantised_weights_in_a_folder_are_refused_before_anything_is_loaded(
    tmp_path: Path, part: str, tensors: dict[str, Tensor], message: str
) -> None:
    model = parts(tmp_path / "model", **{part: tensors})
    with pytest.raises(ModelError, match=f"{part}.*{message}.*take the model in fp16, bf16 or fp32"):
        detect(BaseModelConfig(model=str(model)))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_part_whose_config_says_that_it_is_quantised_is_refused(tmp_path: Path, part: str) -> None:
    model = parts(tmp_path / "model", **{part: {"a.weight": torch.ones(2, 2)}})
    own = SD1_UNET if part == "unet" else {}
    (model / part / "config.json").write_text(json.dumps({**own, "quantization_config": {"load_in_8bit": True}}))
    with pytest.raises(ModelError, match=f"(?i)its {part} is quantised .quantization_config.*take the"):
        detect(BaseModelConfig(model=str(model)))


def test_only_the_variant_that_is_loaded_must_not_be_quantised(tmp_path: Path) -> None:
    model = parts(tmp_path / "model", unet={"a.weight": torch.ones(2, 2)})
    save_file(
        {"a.weight": torch.ones(2, 2, dtype=torch.int8)}, model / "unet" / "diffusion_pytorch_model.int8.safetensors"
    )
    assert detect(BaseModelConfig(model=str(model))).family == "sd1"
    with pytest.raises(ModelError, match="whole numbers"):
        detect(BaseModelConfig(model=str(model), variant="int8"))


def test_a_quantised_vae_is_refused_in_file_and_folder(tmp_path: Path) -> None:
    tensors = {"encoder.conv_in.weight": torch.ones(2, 2, 3, 3, dtype=torch.int8)}
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for place in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(ModelError, match="whole numbers, such as encoder.conv_in.weight"):
            load_vae(str(place), "sd1", torch.float32)
