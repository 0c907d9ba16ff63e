"""What a merged model or an extracted adapter lacks of what was asked for: it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora.adapters.algebra.extract import Ranks
from sdlora.adapters.algebra.making import extract_adapter, merge_adapters
from sdlora.config.mix import MixedAdapter
from sdlora.errors import AdapterError
from tests.support.adapter_files import random_adapter
from tests.support.tiny_models import save_single_file


@pytest.fixture(scope="module")
def tiny_file(tiny_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_single_file(tiny_sd1, tmp_path_factory.mktemp("files") / "sd1.safetensors")


def changed(source: Path, target: Path, change: Callable[[dict[str, Tensor]], None], **metadata: str) -> Path:
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, target, metadata or None)
    return target


def nothing(tensors: dict[str, Tensor]) -> None:
    """No change of the tensors."""


QUERY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


def extracted(tuned: Path, base: Path) -> str:
    made = extract_adapter(str(tuned), str(base), tuned.parent / "x.safetensors", Ranks(2), force=True)
    return "; ".join(made.result.notes)


def test_all_that_an_extracted_adapter_lacks_of_the_difference_is_said(tiny_file: Path, tmp_path: Path) -> None:
    base = tiny_file

    def tune(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY] += 0.1
        tensors["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"] += 0.1
        tensors["first_stage_model.decoder.conv_in.weight"] += 0.1
        del tensors[QUERY.replace("to_q", "to_k")]

    notes = extracted(changed(base, tmp_path / "tuned.safetensors", tune), base)
    assert "no adapter holds 2 tensors in which they differ, too: cond_stage_model.transformer.text_model" in notes
    assert f"1 layer only in {base.name}, left out: lora_unet_down_blocks_0_attentions_0" in notes


def test_extracting_from_models_of_different_prediction_says_how_to_use_the_adapter(
    tiny_file: Path, tmp_path: Path
) -> None:
    plain = changed(tiny_file, tmp_path / "eps.safetensors", nothing, **{"modelspec.prediction_type": "epsilon"})

    def tune(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY] += 0.1

    tuned = changed(plain, tmp_path / "v.safetensors", tune, **{"modelspec.prediction_type": "v"})
    assert (
        "v.safetensors predicts v_prediction, eps.safetensors epsilon: with the adapter the base has to"
        in extracted(tuned, plain)
    )


def test_an_inpainting_model_differs_in_its_first_layer_which_is_said(tiny_file: Path, tmp_path: Path) -> None:
    first = "model.diffusion_model.input_blocks.0.0.weight"

    def widen(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY] += 0.1
        tensors[first] = torch.cat([tensors[first], torch.zeros(len(tensors[first]), 5, 3, 3)], 1)

    notes = extracted(changed(tiny_file, tmp_path / "inpaint.safetensors", widen), tiny_file)
    assert "1 layer differs and is left out: lora_unet_conv_in" in notes


def test_a_model_with_values_that_are_not_finite_is_not_extracted_from(tiny_file: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY][0] = float("nan")

    broken = changed(tiny_file, tmp_path / "nan.safetensors", spoil)
    with pytest.raises(AdapterError, match=r"attn1_to_q has values that aren't finite in nan.safetensors: that model"):
        extracted(broken, tiny_file)


def test_updates_that_a_models_number_type_rounds_away_are_said(
    tiny_file: Path, tiny_sd1: Path, tmp_path: Path
) -> None:
    adapter = random_adapter(str(tiny_sd1), tmp_path / "a.safetensors", size=0.01)

    def pack(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(torch.float8_e4m3fn) if tensor.is_floating_point() else tensor

    coarse = changed(tiny_file, tmp_path / "fp8.safetensors", pack)
    out, one = tmp_path / "m.safetensors", [MixedAdapter(file=str(adapter))]
    notes = "; ".join(merge_adapters(str(coarse), one, out).notes)
    assert "the model's number type (float8_e4m3fn) is too coarse for updates as small as these: their" in notes
    assert merge_adapters(str(tiny_file), one, out, force=True).notes == ()


def test_merging_an_adapter_for_another_prediction_is_said(tiny_file: Path, tiny_sd1: Path, tmp_path: Path) -> None:
    plain = changed(tiny_file, tmp_path / "eps.safetensors", nothing, **{"modelspec.prediction_type": "epsilon"})
    adapter = random_adapter(str(tiny_sd1), tmp_path / "a.safetensors")
    for_flow = changed(adapter, tmp_path / "flow.safetensors", nothing, **{"modelspec.prediction_type": "flow"})
    notes = merge_adapters(str(plain), [MixedAdapter(file=str(for_flow))], tmp_path / "m.safetensors").notes
    assert any(
        "flow.safetensors was trained on a model that predicts flow, eps.safetensors predicts epsilon" in note
        for note in notes
    )
