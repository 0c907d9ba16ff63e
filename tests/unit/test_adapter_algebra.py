"""Properties of the algebra on adapters, over families, algorithms, ranks, alphas and number types.

The expected updates are computed here once more, in numpy and float64, from the tensors as they stand in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora.adapters.algebra.convert import convert
from sdlora.adapters.algebra.low_rank import decompose, from_matrix, from_weights
from sdlora.adapters.algebra.making import mix_adapters, resize_adapter
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile
from sdlora.config.mix import MixConfig, MixedAdapter

Array = np.ndarray

LAYERS = {
    "sd1": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (6, 768, 1),
        "lora_unet_down_blocks_1_attentions_0_proj_in": (8, 10, 1),
        "lora_unet_mid_block_resnets_0_conv1": (8, 6, 9),
        "lora_te_text_model_encoder_layers_3_mlp_fc1": (8, 6, 1),
    },
    "sd2": {
        "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_v": (6, 1024, 1),
        "lora_unet_down_blocks_0_downsamplers_0_conv": (6, 8, 9),
        "lora_te_text_model_encoder_layers_20_self_attn_q_proj": (8, 6, 1),
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q": (8, 6, 1),
        "lora_unet_output_blocks_2_2_conv": (6, 8, 9),
        "lora_unet_middle_block_0_in_layers_2": (6, 4, 9),
        "lora_te1_text_model_encoder_layers_0_self_attn_k_proj": (8, 6, 1),
        "lora_te2_text_model_encoder_layers_31_mlp_fc2": (6, 8, 1),
    },
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


Folders = pytest.TempPathFactory


class Drawn(NamedTuple):
    family: str
    tensors: dict[str, Tensor]

    def __repr__(self) -> str:
        return f"{self.family}: { {name: (list(t.shape), t.dtype) for name, t in self.tensors.items()} }"


@st.composite
def adapters(draw: st.DrawFn, families: tuple[str, ...] = ("sd1", "sd2", "sdxl"), lora_only: bool = False) -> Drawn:
    """A family and the tensors of a kohya file for it."""
    family = draw(st.sampled_from(families))
    algorithm = draw(st.sampled_from(["lora"] if lora_only else ["lora", "loha", "lokr", "lokr-full"]))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    tensors: dict[str, Tensor] = {}
    for index, (name, (outputs, inputs, kernel)) in enumerate(LAYERS[family].items()):
        if index and draw(st.booleans()):
            continue
        rank = draw(st.integers(1, 3))
        alpha = draw(st.sampled_from([None, 1.0, 0.5, 3.0, float(rank)]))
        for factor, shape in shapes(algorithm, outputs, inputs, kernel, rank).items():
            tensors[f"{name}.{factor}"] = torch.randn(shape, generator=generator).to(dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return Drawn(family, tensors)


def shapes(algorithm: str, outputs: int, inputs: int, kernel: int, rank: int) -> dict[str, tuple[int, ...]]:
    if algorithm == "lora":
        edge = (3, 3) if kernel == 9 else ()
        ones = (1, 1) if kernel == 9 else ()
        return {"lora_down.weight": (rank, inputs, *edge), "lora_up.weight": (outputs, rank, *ones)}
    if algorithm == "loha":
        pair = {"a": (outputs, rank), "b": (rank, inputs * kernel)}
        return {f"hada_w{i}_{side}": shape for i in (1, 2) for side, shape in pair.items()}
    halves = (outputs // 2, inputs // 2)
    if algorithm == "lokr-full":
        edge = (3, 3) if kernel == 9 else ()
        return {"lokr_w1": (2, 2), "lokr_w2": (*halves, *edge)}
    return {"lokr_w1": (2, 2), "lokr_w2_a": (halves[0], rank), "lokr_w2_b": (rank, halves[1] * kernel)}


def expected_update(tensors: Mapping[str, Tensor], name: str) -> Array:
    """[out, in*k*k] in float64, from the file's tensors alone."""
    own = {
        key.removeprefix(f"{name}."): tensor.double().numpy()
        for key, tensor in tensors.items()
        if key.startswith(f"{name}.")
    }
    alpha = own.get("alpha")
    if "lora_down.weight" in own:
        down, up = own["lora_down.weight"], own["lora_up.weight"]
        product, rank = up.reshape(len(up), -1) @ down.reshape(len(down), -1), len(down)
    elif "hada_w1_a" in own:
        product = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
        rank = len(own["hada_w1_b"])
    elif "lokr_w2" in own:
        return np.kron(own["lokr_w1"], own["lokr_w2"].reshape(len(own["lokr_w2"]), -1))
    else:
        product, rank = np.kron(own["lokr_w1"], own["lokr_w2_a"] @ own["lokr_w2_b"]), len(own["lokr_w2_b"])
    return product * (1.0 if alpha is None else float(alpha) / rank)


def layer_names(tensors: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key in tensors))


def updates(file: AdapterFile) -> dict[str, Array]:
    return {name: weights.delta().flatten(1).numpy() for name, weights in file.modules.items()}


def relative_error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def saved(folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / name
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata)
    return path


quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
few = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@quick
@given(adapters())
def test_what_is_read_is_the_update_that_the_file_means(tmp_path_factory: Folders, drawn: Drawn) -> None:
    family, tensors = drawn
    file = read(saved(tmp_path_factory.mktemp("drawn"), "a.safetensors", tensors))
    assert file.family == family
    assert file.unused == ()
    assert sorted(file.modules) == sorted(layer_names(tensors))
    for name, weights in file.modules.items():
        expected = expected_update(tensors, name)
        assert relative_error(weights.delta().flatten(1).numpy(), expected) < 1e-12
        assert relative_error(from_weights(weights).matrix().numpy(), expected) < 1e-12
        assert relative_error(weights.delta(torch.float32).flatten(1).double().numpy(), expected) < 1e-6


@quick
@given(adapters(lora_only=True))
def test_kohya_to_diffusers_and_back_gives_the_same_weights_bit_for_bit(
    tmp_path_factory: Folders, drawn: Drawn
) -> None:
    _, tensors = drawn
    place = tmp_path_factory.mktemp("drawn")
    first = read(saved(place, "a.safetensors", tensors))
    convert(first.path, place / "peft.safetensors", "diffusers")
    convert(place / "peft.safetensors", place / "back.safetensors", "kohya")
    back = read(place / "back.safetensors")
    assert read(place / "peft.safetensors").format == "diffusers"
    assert back.modules.keys() == first.modules.keys()
    for name, weights in first.modules.items():
        once, twice = weights.delta(torch.float32), back.modules[name].delta(torch.float32)
        assert torch.equal(once.flatten(), twice.flatten()), name


@few
@given(adapters())
def test_a_converted_kohya_file_holds_the_same_numbers(tmp_path_factory: Folders, drawn: Drawn) -> None:
    _, tensors = drawn
    place = tmp_path_factory.mktemp("drawn")
    path = saved(place, "a.safetensors", tensors, {"ss_sd_model_name": "base", "ss_steps": "7"})
    convert(path, place / "b.safetensors", "kohya")
    first, second = read(path), read(place / "b.safetensors")
    for name, weights in first.modules.items():
        assert torch.equal(weights.delta(torch.float32), second.modules[name].delta(torch.float32))
    assert second.metadata["ss_steps"] == "7"


weights_of_two = st.tuples(st.sampled_from([1.0, 0.8, -0.5, 2.0]), st.sampled_from([1.0, 0.3, -1.0]))


def mixed(place: Path, weights: tuple[float, float], **more: object) -> AdapterFile:
    config = MixConfig(
        adapters=[
            MixedAdapter(file=str(place / "a.safetensors"), weight=weights[0]),
            MixedAdapter(file=str(place / "b.safetensors"), unet=weights[1], text_encoder=0.25),
        ],
        precision="fp32",
        **more,
    )
    mix_adapters(config, place / "mix.safetensors", force=True)
    return read(place / "mix.safetensors")


def two_adapters(place: Path, first: Drawn, second: Drawn) -> Path:
    saved(place, "a.safetensors", first.tensors)
    saved(place, "b.safetensors", second.tensors)
    return place


def weighted_sum(place: Path, weights: tuple[float, float]) -> dict[str, Array]:
    result: dict[str, Array] = {}
    for file, factor in (("a", lambda _: weights[0]), ("b", lambda n: 0.25 if n.startswith("lora_te") else weights[1])):
        tensors = load_file(place / f"{file}.safetensors")
        for name in layer_names(tensors):
            result[name] = result.get(name, 0.0) + factor(name) * expected_update(tensors, name)
    return result


@few
@given(adapters(("sd1",)), adapters(("sd1",)), weights_of_two)
def test_concat_is_the_sum_of_the_updates(
    tmp_path_factory: Folders, first: Drawn, second: Drawn, weights: tuple[float, float]
) -> None:
    place = two_adapters(tmp_path_factory.mktemp("drawn"), first, second)
    found, expected = updates(mixed(place, weights)), weighted_sum(place, weights)
    assert found.keys() == expected.keys()
    scale = max(np.linalg.norm(update) for update in expected.values())
    for name, update in expected.items():
        assert np.linalg.norm(found[name] - update) < 1e-6 * max(np.linalg.norm(update), 1e-2 * scale)


@few
@given(adapters(("sdxl",)), adapters(("sdxl",)), weights_of_two)
def test_svd_at_full_rank_is_the_sum_and_below_it_tells_its_error(
    tmp_path_factory: Folders, first: Drawn, second: Drawn, weights: tuple[float, float]
) -> None:
    place = two_adapters(tmp_path_factory.mktemp("drawn"), first, second)
    expected = weighted_sum(place, weights)
    full = updates(mixed(place, weights, method="svd", rank=64))
    for name, update in expected.items():
        assert np.linalg.norm(full[name] - update) < 1e-6 * max(np.linalg.norm(update), 1e-2)
    config = MixConfig(
        adapters=[
            MixedAdapter(file=str(place / "a.safetensors"), weight=weights[0]),
            MixedAdapter(file=str(place / "b.safetensors"), unet=weights[1], text_encoder=0.25),
        ],
        method="svd",
        rank=1,
        precision="fp32",
    )
    made = mix_adapters(config, place / "low.safetensors")
    low = updates(read(place / "low.safetensors"))
    for layer in made.result.layers:
        best = np.linalg.svd(expected[layer.name], compute_uv=False)
        assert layer.norm == pytest.approx(np.linalg.norm(best), rel=1e-6)
        assert layer.lost == pytest.approx(np.linalg.norm(best[1:]), rel=1e-5, abs=1e-6)
        actual = np.linalg.norm(low[layer.name] - expected[layer.name])
        assert actual == pytest.approx(layer.lost, rel=1e-4, abs=1e-5)


@few
@given(adapters(lora_only=True))
def test_resizing_to_the_same_rank_changes_no_bit(tmp_path_factory: Folders, drawn: Drawn) -> None:
    _, tensors = drawn
    place = tmp_path_factory.mktemp("drawn")
    path = saved(place, "a.safetensors", tensors)
    resize_adapter(path, place / "b.safetensors", rank=3, precision="fp32")
    first, second = read(path), read(place / "b.safetensors")
    for name, weights in first.modules.items():
        found = second.modules[name]
        assert found.rank == weights.rank
        assert torch.equal(found.factors["lora_down"], weights.factors["lora_down"].float())
        assert relative_error(found.delta().flatten(1).numpy(), weights.delta().flatten(1).numpy()) < 1e-6


@few
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_a_decomposition_is_the_one_that_numpy_finds(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    parts = decompose(from_matrix(matrix))
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(parts.values_n.numpy(), values, rtol=1e-7, atol=1e-7)
    for rank in range(1, len(values) + 1):
        rest = parts.truncated(rank).matrix().numpy() - matrix.numpy()
        assert np.linalg.norm(rest) == pytest.approx(np.linalg.norm(values[rank:]), rel=1e-6, abs=1e-7)
    share = values / values.sum()
    assert parts.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert parts.rank_for(1.0) == parts.true_rank
