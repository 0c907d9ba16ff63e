"""Base models with values that are no numbers: said where they are loaded or merged into, not by black pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora.adapters.algebra.making import merge_adapters
from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import AdapterError, ModelError
from sdlora.models.loading import load
from tests.support.adapter_files import ATTENTION, random_adapter


def damaged(model: Path, target: Path, part: str, value: float) -> Path:
    shutil.copytree(model, target)
    (file,) = (target / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name, one in tensors.items() if one.ndim == 2)
    tensors[name][0, 0] = value
    save_file(tensors, file, {"format": "pt"})
    return target


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_with_values_that_are_not_finite_is_refused(tiny_sd1: Path, tmp_path: Path, part: str) -> None:
    model = damaged(tiny_sd1, tmp_path / "model", part, float("nan"))
    with pytest.raises(ModelError, match="1 weight of its .* with NaN or infinite values in float32.*it is damaged$"):
        load(BaseModelConfig(model=str(model), precision="fp32"))


def test_values_too_large_for_fp16_name_another_precision(tiny_sd1: Path, tmp_path: Path) -> None:
    model = damaged(tiny_sd1, tmp_path / "model", "unet", 1e6)
    with pytest.raises(ModelError, match="too large for fp16: try base_model.precision=bf16"):
        load(BaseModelConfig(model=str(model), precision="fp16"))
    load(BaseModelConfig(model=str(model), precision="bf16"))


def test_merging_into_a_damaged_base_does_not_blame_the_adapter(tiny_sd1: Path, tmp_path: Path) -> None:
    adapter = random_adapter(tiny_sd1, tmp_path / "a.safetensors", layers=ATTENTION)
    model = tmp_path / "model"
    shutil.copytree(tiny_sd1, model)
    (file,) = (model / "unet").glob("*.safetensors")
    save_file({key: one * torch.nan if "to_q" in key else one for key, one in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match="has values that aren't finite: that model is damaged"):
        merge_adapters(model, [str(adapter)], tmp_path / "merged")
