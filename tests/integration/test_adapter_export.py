"""From a live adapter to a file that other tools read: export, and the self-test that proves it or fails loudly."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.writing import Export, write_adapter
from sdlora.adapters.live.attach import Adapter, attach
from sdlora.adapters.live.self_test import self_test
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig, FamilyName, Quantization
from sdlora.errors import AdapterError
from sdlora.models.bundle import Bundle
from tests.support.copied_models import copy_of
from tests.support.tiny_models import build

Load = Callable[..., Bundle]


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Load:
    @cache
    def folder(family: FamilyName) -> Path:
        return build(family, tmp_path_factory.mktemp(family))

    def load_bundle(family: FamilyName, quantization: Quantization = "none") -> Bundle:
        precision = "fp32" if quantization == "none" else "bf16"
        return copy_of(BaseModelConfig(model=str(folder(family)), precision=precision, quantization=quantization))

    return load_bundle


@torch.no_grad()
def trained(bundle: Bundle, **settings: Any) -> Adapter:
    """An adapter with values as if it had been trained."""
    adapter = attach(bundle, AdapterConfig(**{"rank": 4, "layers": "all+conv", "text_encoder": True, **settings}))
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
    return adapter


def exported(adapter: Adapter, path: Path, **settings: Any) -> Export:
    return write_adapter(
        path, adapter.module_weights(), TrainingFacts("blueprint", adapter.family, trigger="blprnt"), **settings
    )


@pytest.mark.parametrize(
    ("family", "settings", "file_format", "precision"),
    [
        ("sd1", {"rslora": True, "conv_rank": 2, "block_ranks": {"mid_block": 6}}, "kohya", "fp16"),
        ("sd1", {"conv_rank": 2, "alpha": 0.3}, "diffusers", "bf16"),
        ("sd2", {"conv_alpha": 1.0}, "kohya", "fp32"),
        ("sdxl", {"block_ranks": {"mid_block": 2}}, "kohya", "fp16"),
    ],
)
def test_the_file_does_in_a_fresh_diffusers_pipeline_what_the_live_adapter_does(
    loader: Load, tmp_path: Path, family: FamilyName, settings: dict[str, Any], file_format: Any, precision: Any
) -> None:
    path = tmp_path / "a.safetensors"
    adapter = trained(loader(family), **settings)
    result = exported(adapter, path, file_format=file_format, precision=precision)
    report = self_test(adapter, path, lambda: loader(family))
    allowed = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}[precision]
    assert report.num_modules == len(adapter.targets)
    assert report.max_relative_error < allowed
    assert report.diffusers_error is not None
    assert report.diffusers_error < allowed
    assert report.prediction_error is not None
    assert report.prediction_error < allowed
    assert report.text_error is not None
    assert report.text_error < allowed
    assert report.untested == ()
    assert "prediction through diffusers" in report.summary()
    assert result.size_bytes == path.stat().st_size
    assert read(path).family == family


@pytest.mark.parametrize("file_format", ["kohya", "diffusers"])
def test_diffusers_finds_no_missing_and_no_unexpected_key(
    loader: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture, file_format: Any
) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    exported(trained(loader("sd1")), tmp_path / "a.safetensors", file_format=file_format)
    bundle = loader("sd1")
    pipeline = StableDiffusionPipeline(
        vae=bundle.vae,
        unet=bundle.unet,
        text_encoder=bundle.text_encoders[0],
        tokenizer=bundle.tokenizers[0],
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    diffusers_logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            pipeline.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    finally:
        diffusers_logging.disable_propagation()
    assert not [record.message for record in caplog.records if "key" in record.message.lower()]
    assert pipeline.get_list_adapters() == {"unet": ["default_0"], "text_encoder": ["default_0"]}


def test_a_file_trained_on_a_quantised_base_passes_on_the_full_precision_one(loader: Load, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    adapter = trained(loader("sd1", "nf4"), text_encoder=False)
    exported(adapter, tmp_path / "a.safetensors")
    report = self_test(adapter, tmp_path / "a.safetensors", lambda: loader("sd1"))
    assert report.prediction_error is not None
    assert report.prediction_error < 1e-3
    assert report.text_error is None


@pytest.mark.parametrize(
    ("settings", "untested"),
    [
        ({"algorithm": "loha"}, "it can't read loha"),
        ({"algorithm": "lokr", "lokr_factor": 4}, "it can't read lokr"),
        ({"algorithm": "lokr", "rank": 64}, "it can't read lokr"),
        ({"dora": True}, "it ignores DoRA's magnitude"),
        ({"algorithm": "loha", "dora": True}, "it can't read loha"),
        ({"algorithm": "lokr", "rank": 64, "dora": True}, "it can't read lokr"),
    ],
    ids=["loha", "lokr", "full-lokr", "dora", "loha-dora", "full-lokr-dora"],
)
def test_what_diffusers_cannot_read_is_compared_layer_by_layer_and_the_report_says_so(
    loader: Load, tmp_path: Path, settings: dict[str, Any], untested: str
) -> None:
    adapter = trained(loader("sd1"), **settings)
    result = exported(adapter, tmp_path / "a.safetensors")
    report = self_test(adapter, tmp_path / "a.safetensors", lambda: loader("sd1"))
    assert report.num_modules == len(adapter.targets)
    assert report.max_relative_error < 2e-3
    assert untested in report.untested[0]
    assert report.prediction_error is None
    assert any("DoRA does not travel" in text or "can't read" in text for text in result.warnings)


@pytest.fixture(scope="module")
def good(loader: Load, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Path]:
    adapter = trained(loader("sd1"))
    path = tmp_path_factory.mktemp("good") / "a.safetensors"
    exported(adapter, path)
    return adapter, path


def spoilt(path: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, target)
    return target


PROJ = "lora_unet_mid_block_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def _double_alpha(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PROJ}.alpha"] = tensors[f"{PROJ}.alpha"] * 2


def _zero_up(tensors: dict[str, Tensor]) -> None:
    tensors[f"{TEXT}.lora_up.weight"].zero_()


def _drop_text_model(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("lora_te_text_model_")]:
        tensors[name.replace("text_model_", "")] = tensors.pop(name)


def _add_layer(tensors: dict[str, Tensor]) -> None:
    tensors["lora_unet_conv_in.alpha"] = torch.tensor(1.0)


def _swap_layers(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "_attn1_to_q." in name]:
        other = name.replace("_to_q.", "_to_k.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_double_alpha, r"unet\.mid_block\.attentions\.0\.proj_in differs by 1\.00e\+00 of its update's size"),
        (_zero_up, r"text_encoder\.encoder\.layers\.0\.mlp\.fc1 differs by 1\.00e\+00"),
        (_drop_text_model, r"has no entry lora_te_text_model_encoder_layers_0_self_attn_\w_proj for the trained layer"),
        (_add_layer, r"1 entries belong to no trained layer, first: lora_unet_conv_in\.alpha"),
        (_swap_layers, r"attn1\.to_q differs by"),
    ],
)
def test_the_self_test_fails_loudly_on_a_wrong_file(
    good: tuple[Adapter, Path], tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    adapter, path = good
    with pytest.raises(AdapterError, match=message):
        self_test(adapter, spoilt(path, tmp_path / "a.safetensors", change))


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")  # the very flaw, told by PEFT
def test_the_self_test_notices_that_diffusers_ignores_an_alpha_of_its_own(
    good: tuple[Adapter, Path], loader: Load, tmp_path: Path
) -> None:
    def give_one_layer_its_own_alpha(tensors: dict[str, Tensor]) -> None:
        tensors[f"{TEXT}.alpha"] = tensors[f"{TEXT}.alpha"] * 2
        tensors[f"{TEXT}.lora_up.weight"] = tensors[f"{TEXT}.lora_up.weight"] / 2

    adapter, path = good
    other = spoilt(path, tmp_path / "a.safetensors", give_one_layer_its_own_alpha)
    assert self_test(adapter, other).max_relative_error < 1e-3  # the file itself is right
    with pytest.raises(AdapterError, match=r"as diffusers loads .*, encoder\.layers\.0\.mlp\.fc1 differs"):
        self_test(adapter, other, lambda: loader("sd1"))


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CONV = "lora_unet_mid_block_resnets_0_conv1"  # 64 to 64 channels, 3x3


@pytest.mark.parametrize(
    "factors",
    [
        {
            "lora_down.weight": _random(4, 64, 1, 1),
            "lora_mid.weight": _random(4, 4, 3, 3),
            "lora_up.weight": _random(64, 4, 1, 1),
        },
        {
            **{f"hada_w{i}_{x}": _random(4, 64) + i for i in (1, 2) for x in "ab"},
            **{f"hada_t{i}": _random(4, 4, 3, 3) - i for i in (1, 2)},
        },
        {
            "lokr_w1": _random(8, 8),
            "lokr_w2_a": _random(4, 8),
            "lokr_w2_b": _random(4, 8),
            "lokr_t2": _random(4, 4, 3, 3),
        },
        {"lokr_w1_a": _random(16, 4), "lokr_w1_b": _random(4, 2), "lokr_w2": _random(4, 32, 3, 3)},
    ],
    ids=["lora", "loha", "lokr", "decomposed-lokr"],
)
def test_factors_cut_in_other_ways_are_trained_on_and_written_as_they_are(
    loader: Load, tmp_path: Path, factors: dict[str, Tensor]
) -> None:
    given = {f"{CONV}.{name}": tensor / 8 for name, tensor in factors.items()}
    save_file({**given, f"{CONV}.alpha": torch.tensor(2.0)}, tmp_path / "given.safetensors")
    expected = read(tmp_path / "given.safetensors").modules[CONV].delta().float().reshape(64, 64, 3, 3)
    adapter = attach(loader("sd1"), AdapterConfig(start_from=str(tmp_path / "given.safetensors")))
    torch.testing.assert_close(adapter.delta_weight("unet", "mid_block.resnets.0.conv1"), expected)
    exported(adapter, tmp_path / "written.safetensors", precision="fp32")
    assert self_test(adapter, tmp_path / "written.safetensors").max_relative_error < 1e-5


def test_weights_that_are_not_finite_are_never_written(loader: Load, tmp_path: Path) -> None:
    adapter = trained(loader("sd1"))
    with torch.no_grad():
        adapter.parameters[0].view(-1)[0] = float("nan")
    with pytest.raises(AdapterError, match=r"1 of 349 layers hold NaN or infinite weights \(first: down_blocks\.0"):
        exported(adapter, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_header_says_what_other_tools_ask(good: tuple[Adapter, Path]) -> None:
    with safe_open(good[1], "pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_output_name"] == "blueprint"
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2.0"}
    assert metadata["modelspec.trigger_phrase"] == "blprnt"
    assert metadata["modelspec.hash_sha256"] == f"0x{metadata['sshs_model_hash']}"
    assert len(metadata["sshs_legacy_hash"]) == 8


def test_an_untrained_adapter_is_written_with_a_warning(loader: Load, tmp_path: Path) -> None:
    adapter = attach(loader("sd1"), AdapterConfig(rank=1, layers="attention"))
    warnings = exported(adapter, tmp_path / "a.safetensors").warnings
    assert any("128 tensors are all zero" in warning for warning in warnings)
    assert any("rank 1" in warning for warning in warnings)
