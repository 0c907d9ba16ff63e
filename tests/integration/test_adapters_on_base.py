"""Adapters beside a base model in mix and inspect: of its family, of its shapes, and what it has not is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora.adapters.algebra.base_weights import open_base
from sdlora.adapters.algebra.loaded_base import load_base
from sdlora.adapters.algebra.making import merge_adapters, mix_adapters
from sdlora.adapters.files.catalog import require_adapter
from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import AdapterError
from tests.support.adapter_files import ATTENTION, random_adapter


def test_mix_refuses_plain_adapters_that_do_not_fit_the_base(
    shallow_sd1: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    fitting = random_adapter(shallow_sd1, tmp_path / "sd1.safetensors", layers=ATTENTION)
    settings = {"adapters": [str(fitting)], "base_model": str(tiny_sdxl)}
    with pytest.raises(AdapterError, match="different families can't be put together: sd1.safetensors is for sd1"):
        mix_adapters(settings, tmp_path / "out.safetensors")
    tensors = load_file(fitting)
    wider = {key: torch.ones(one.shape[0], 24) if "lora_down" in key else one for key, one in tensors.items()}
    save_file(wider, tmp_path / "wider.safetensors", {"ss_base_model_version": "sd_v1"})
    settings = {"adapters": [str(tmp_path / "wider.safetensors")], "base_model": str(shallow_sd1)}
    with pytest.raises(
        AdapterError, match=r"layers don't fit the model: wider.safetensors: lora_unet_.* the model has"
    ):
        mix_adapters(settings, tmp_path / "out.safetensors")
    with pytest.raises(AdapterError, match=r"is sd1, but the family asked for is sdxl"):
        mix_adapters({**settings, "family": "sdxl"}, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_mix_says_which_layers_its_base_has_not(shallow_sd1: Path, tmp_path: Path) -> None:
    adapter = random_adapter(shallow_sd1, tmp_path / "a.safetensors", layers=ATTENTION)
    name = "lora_unet_down_blocks_3_attentions_0_transformer_blocks_0_attn1_to_q"
    more = {f"{name}.lora_down.weight": torch.ones(4, 32), f"{name}.lora_up.weight": torch.ones(32, 4)}
    save_file({**load_file(adapter), **more}, tmp_path / "b.safetensors", {"ss_base_model_version": "sd_v1"})
    settings = {"adapters": [str(tmp_path / "b.safetensors")], "base_model": str(shallow_sd1)}
    notes = mix_adapters(settings, tmp_path / "out.safetensors").result.notes
    assert f"{shallow_sd1.name} has not 1 layer of the mix: {name}" in notes
    save_file(more, tmp_path / "only.safetensors", {"ss_base_model_version": "sd_v1"})
    with pytest.raises(AdapterError, match="no layer of the adapters stands in sd1"):
        mix_adapters({**settings, "adapters": [str(tmp_path / "only.safetensors")]}, tmp_path / "no.safetensors")


def test_inspect_with_a_base_refuses_an_adapter_that_does_not_fit_it(
    shallow_sd1: Path, tiny_sdxl: Path, tmp_path: Path, cli: Callable[..., object]
) -> None:
    adapter = random_adapter(shallow_sd1, tmp_path / "a.safetensors", layers=ATTENTION)
    outcome = cli("inspect", adapter, "--base", tiny_sdxl)
    assert "different families can't be put together" in str(outcome)


def test_merge_says_that_a_moving_average_stays_without_the_adapters(
    tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    base = tmp_path / "full-ema.safetensors"
    save_file({**load_file(tiny_files["sd1"]), "model_ema.diffusion_modelout0weight": torch.ones(4)}, base)
    adapter = random_adapter(base, tmp_path / "a.safetensors", layers=ATTENTION)
    notes = merge_adapters(base, [str(adapter)], tmp_path / "merged.safetensors").notes
    assert any("1 tensors of a moving average (model_ema.*) stay as they are" in note for note in notes)


def test_an_adapter_too_strong_for_the_bases_number_type_is_refused(shallow_sd1: Path, tmp_path: Path) -> None:
    adapter = random_adapter(shallow_sd1, tmp_path / "a.safetensors", layers=ATTENTION)
    strong = {key: torch.tensor(1e9) if key.endswith("alpha") else one for key, one in load_file(adapter).items()}
    save_file(strong, tmp_path / "strong.safetensors", {"ss_base_model_version": "sd_v1"})
    config = BaseModelConfig(
        model=str(shallow_sd1), precision="fp16", adapters=({"file": str(tmp_path / "strong.safetensors")},)
    )
    with pytest.raises(
        AdapterError, match=r"strong.safetensors lora_.* would hold values that float16 can't; lower its"
    ):
        load_base(config)


def test_a_bias_for_a_layer_without_one_is_used_as_in_generating(shallow_sd1: Path, tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    width = open_base(str(shallow_sd1)).weight(name).shape[0]
    save_file({f"{name}.diff_b": torch.arange(float(width))}, tmp_path / "b.safetensors")
    config = BaseModelConfig(
        model=str(shallow_sd1),
        precision="fp32",
        adapters=({"file": str(tmp_path / "b.safetensors"), "weight": 0.5},),
        family="sd1",
    )
    layer = load_base(config).unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    assert torch.equal(layer.bias, torch.arange(float(width)) / 2)


def test_what_is_no_adapter_is_named_by_the_library_too(tmp_path: Path) -> None:
    save_file({"prompt_embeddings": torch.ones(2, 768)}, tmp_path / "soft.safetensors")
    with pytest.raises(AdapterError, match="not read: PEFT's prompt, prefix or P-tuning"):
        require_adapter(tmp_path / "soft.safetensors")
    save_file({"clip_l": torch.ones(2, 768)}, tmp_path / "word.safetensors")
    with pytest.raises(AdapterError, match=r"is an embedding .textual inversion. and has no layers"):
        require_adapter(tmp_path / "word.safetensors")
