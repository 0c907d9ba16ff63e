"""Files made out of files load in diffusers as they are meant: no key missing or unexpected, every scale right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters.algebra.base_weights import open_base
from sdlora.adapters.algebra.convert import convert
from sdlora.adapters.algebra.making import mix_adapters
from sdlora.adapters.files.kohya import kohya_name, module_path
from sdlora.adapters.files.layer_sets import addressable
from sdlora.adapters.files.reading import read
from sdlora.config.mix import MixConfig, MixedAdapter
from sdlora.errors import AdapterError


def adapter(model: Path, target: Path, seed: int, ranks: tuple[int, ...], alphas: tuple[float, ...]) -> Path:
    """A kohya file for all layers of the model, ranks and alphas in turn."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for index, (name, place) in enumerate(open_base(str(model)).places.items()):
        found = module_path(name, "sd1")
        if found is None or not addressable(*found):
            continue
        outputs, *inner = place.shape
        rank = ranks[index % len(ranks)]
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *inner, generator=generator) * 0.1
        tensors[f"{name}.lora_up.weight"] = torch.randn(outputs, rank, *[1] * (len(inner) - 1), generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(alphas[index % len(alphas)])
    save_file(tensors, target, {"ss_base_model_version": "sd_v1"})
    return target


def loaded_by_diffusers(model: Path, file: Path) -> dict[str, Tensor]:
    """Every update as diffusers' own loader puts it into a pipeline, by kohya name."""
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="x")
    parts: dict[Any, Any] = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {
        kohya_name(part, path, "sd1"): layer.get_delta_weight("x").detach()
        for part, module in parts.items()
        for path, layer in module.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def assert_same(found: dict[str, Tensor], file: Path) -> None:
    expected = {name: weights.delta() for name, weights in read(file).modules.items()}
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        distance = float((found[name].double().flatten() - update.flatten()).norm())
        assert distance < 1e-5 * float(update.norm()), name


@pytest.mark.parametrize(
    ("ranks", "alphas", "declares"),
    [((4,), (2.0,), False), ((4, 2), (3.0, 1.0, 4.0), True)],
    ids=["folded", "declared"],
)
def test_a_converted_file_has_the_same_updates_in_diffusers(
    shallow_sd1: Path, tmp_path: Path, ranks: tuple[int, ...], alphas: tuple[float, ...], declares: bool
) -> None:
    original = adapter(shallow_sd1, tmp_path / "a.safetensors", 0, ranks, alphas)
    result = convert(original, tmp_path / "peft.safetensors", "diffusers")
    assert any("the scales stand in the header" in warning for warning in result.warnings) is declares
    assert_same(loaded_by_diffusers(shallow_sd1, tmp_path / "peft.safetensors"), original)


def test_a_mix_of_different_ranks_loads_in_diffusers_without_a_word(
    shallow_sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = adapter(shallow_sd1, tmp_path / "a.safetensors", 0, (4, 2), (3.0, 1.0))
    second = adapter(shallow_sd1, tmp_path / "b.safetensors", 1, (3,), (1.0,))
    config = MixConfig(
        adapters=[MixedAdapter(file=str(first), weight=0.8), MixedAdapter(file=str(second), weight=-0.5)],
        precision="fp32",
    )
    mix_adapters(config, tmp_path / "mix.safetensors")
    diffusers_logging.set_verbosity_warning()
    assert_same(loaded_by_diffusers(shallow_sd1, tmp_path / "mix.safetensors"), tmp_path / "mix.safetensors")
    assert "unexpected" not in capsys.readouterr().err
    one, two = (read(path).modules for path in (first, second))
    for name, weights in read(tmp_path / "mix.safetensors").modules.items():
        expected = 0.8 * one[name].delta() - 0.5 * two[name].delta()
        assert float((weights.delta() - expected).norm()) < 1e-6 * float(expected.norm())


def test_what_diffusers_cannot_read_is_not_converted(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.hada_w{i}_{x}": torch.ones((2, 768) if x == "b" else (8, 2)) for i in (1, 2) for x in "ab"}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="can't hold 1 of 1 layers: .* is loha, which diffusers can't read"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")


def test_a_value_that_a_smaller_number_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.full((2, 768), 1e5), f"{name}.lora_up.weight": torch.ones(8, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="a value is too large for fp16; take bf16"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", precision="fp16")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", precision="bf16")
