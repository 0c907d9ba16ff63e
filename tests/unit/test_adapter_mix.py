"""Mixing adapters: weights by part and block, methods, refusals, provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters.algebra.blocks import block_label, block_names, block_weights
from sdlora.adapters.algebra.convert import convert
from sdlora.adapters.algebra.making import extract_adapter, merge_adapters, mix_adapters, resize_adapter
from sdlora.adapters.files.reading import read
from sdlora.cli.early import require_files
from sdlora.config.files import validate
from sdlora.config.mix import MixConfig, MixedAdapter, parse_adapter
from sdlora.errors import AdapterError, ConfigError
from tests.support.emoji_adapters import random_adapter

QUERY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q"
KEY = "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
MID = "lora_unet_mid_block_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SHAPES = {QUERY: (8, 10), KEY: (8, 768), MID: (8, 6, 3, 3), TEXT: (8, 6)}


def lora(name: str, seed: int, rank: int = 2, alpha: float | None = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs, *inner = SHAPES[name]
    tensors = {
        f"{name}.lora_down.weight": torch.randn(rank, *inner, generator=generator),
        f"{name}.lora_up.weight": torch.randn(outputs, rank, *[1] * (len(inner) - 1), generator=generator),
    }
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def written(folder: Path, name: str, *layers: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.clone() for layer in layers for key, tensor in layer.items()}, path, metadata)
    return str(path)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    first = written(tmp_path, "a", *(lora(name, 1) for name in SHAPES), metadata={"modelspec.trigger_phrase": "sks"})
    return first, written(tmp_path, "b", lora(KEY, 2, rank=3, alpha=None), lora(TEXT, 3, rank=1, alpha=3.0))


def mixed(folder: Path, *adapters: str | MixedAdapter, **settings: Any) -> dict[str, Tensor]:
    parsed = [parse_adapter(one) if isinstance(one, str) else one for one in adapters]
    config = MixConfig(**{"adapters": parsed, "precision": "fp32", **settings})
    mix_adapters(config, folder / "mix.safetensors", force=True)
    return {name: weights.delta() for name, weights in read(folder / "mix.safetensors").modules.items()}


def updates(path: str) -> dict[str, Tensor]:
    return {name: weights.delta() for name, weights in read(path).modules.items()}


def test_updates_are_summed_never_factors_and_signs_count(two: tuple[str, str], tmp_path: Path) -> None:
    a, b = two
    found = mixed(tmp_path, f"{a}:0.8", f"{b}:-0.5")
    assert found.keys() == SHAPES.keys()
    torch.testing.assert_close(found[KEY], 0.8 * updates(a)[KEY] - 0.5 * updates(b)[KEY], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[MID], 0.8 * updates(a)[MID], rtol=1e-6, atol=1e-6)
    assert read(tmp_path / "mix.safetensors").modules[KEY].rank == 5


def test_unet_and_text_encoder_have_weights_of_their_own(two: tuple[str, str], tmp_path: Path) -> None:
    a, _ = two
    found = mixed(tmp_path, f"{a}:unet=0.6,te=0.3")
    torch.testing.assert_close(found[QUERY], 0.6 * updates(a)[QUERY])
    torch.testing.assert_close(found[TEXT], 0.3 * updates(a)[TEXT])
    assert TEXT not in mixed(tmp_path, f"{a}:1:te=0")


def test_blocks_have_weights_of_their_own(two: tuple[str, str], tmp_path: Path) -> None:
    a, _ = two
    assert mixed(tmp_path, f"{a}:1:blocks=INS").keys() == {QUERY, TEXT}
    found = mixed(tmp_path, f"{a}:2:MID=0.5,OUT03=0")
    assert found.keys() == {QUERY, MID, TEXT}
    torch.testing.assert_close(found[MID], updates(a)[MID])
    numbers = ["0.25", *["0"] * 2, "0.5", *["0"] * 13]  # BASE, IN01, IN02, IN04, ...
    found = mixed(tmp_path, f"{a}:blocks=[{','.join(numbers)}]")
    assert found.keys() == {QUERY, TEXT}
    torch.testing.assert_close(found[QUERY], 0.5 * updates(a)[QUERY])
    torch.testing.assert_close(found[TEXT], 0.25 * updates(a)[TEXT])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("lora_unet_down_blocks_0_resnets_0_conv1", "IN01"),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "IN03"),
        ("lora_unet_down_blocks_3_resnets_1_conv2", "IN11"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", "OUT02"),
        ("lora_unet_up_blocks_3_attentions_2_proj_in", "OUT11"),
        ("lora_unet_mid_block_attentions_0_proj_in", "MID"),
        ("lora_unet_middle_block_1_proj_in", "MID"),
        ("lora_unet_input_blocks_8_1_proj_in", "IN08"),
        ("lora_unet_output_blocks_0_1_proj_in", "OUT00"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "BASE"),
        ("lora_unet_time_embedding_linear_1", "UNET"),
        ("lora_unet_conv_in", "IN00"),
    ],
)
def test_layers_stand_in_the_blocks_of_the_lbw_lists(name: str, label: str) -> None:
    assert block_label(name) == label


def test_lists_follow_the_order_of_sd_scripts() -> None:
    assert len(block_names("sd1")) == 26
    assert len(block_names("sdxl")) == 20
    short = block_weights(list(range(17)), "sd1", "x")
    assert [name for name, weight in short.items() if weight in (0, 1, 3, 7, 8, 16)] == [
        "BASE",
        "IN01",
        "IN04",
        "MID",
        "OUT03",
        "OUT11",
    ]
    xl = block_weights(list(range(12)), "sdxl", "x")
    assert list(xl) == ["BASE", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT0{i}" for i in range(6))]
    # the presets of block-weight extensions, by their positions in a list of 17
    presets = {"INS": "11110000000000000", "MIDD": "10001111111100000", "OUTD": "10000000111100000"}
    for preset, bits in presets.items():
        weights = block_weights(preset, "sd2", "x")
        assert "".join(str(int(weights[name])) for name in short) == bits
    assert set(block_weights("NONE", "sdxl", "x").values()) == {0.0}
    assert block_weights("all", "sd1", "x") == {}


@pytest.mark.parametrize(
    ("given", "family", "message"),
    [
        ("OUTX", "sd1", "no weights are called 'OUTX'; there is ALL, NONE, INS"),
        ([1.0] * 12, "sd1", "12 weights, as lists for SDXL have; this adapter needs 17 or 26"),
        ([1.0] * 5, "sdxl", "5 weights; this adapter needs 12 or 20"),
        ({"OUT11": 1.0}, "sdxl", "there is no block OUT11; blocks: BASE, IN00"),
    ],
)
def test_wrong_block_weights_are_explained(given: Any, family: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        block_weights(given, family, "a.safetensors")


def test_ranks_can_be_chosen_by_energy(two: tuple[str, str], tmp_path: Path) -> None:
    a, b = two
    exact, found = mixed(tmp_path, a, b), mixed(tmp_path, a, b, method="svd", energy=0.9)
    for name, update in exact.items():
        lost = float((found[name] - update).norm() / update.norm())
        assert lost**2 <= 0.1 + 1e-6
    ranks = {weights.rank for weights in read(tmp_path / "mix.safetensors").modules.values()}
    assert min(ranks) < 3


def test_linear_is_exact_for_a_shared_factor_and_refused_otherwise(two: tuple[str, str], tmp_path: Path) -> None:
    a, b = two
    with pytest.raises(AdapterError, match=r"linear adds factors, .*Use method concat \(exact\) or svd"):
        mixed(tmp_path, a, b, method="linear")
    shared = lora(QUERY, 1)
    other = {**shared, f"{QUERY}.lora_up.weight": torch.ones(8, 2)}
    first, second = written(tmp_path, "c", shared, lora(KEY, 4)), written(tmp_path, "d", other)
    found = mixed(tmp_path, f"{first}:2", f"{second}:-1", method="linear", family="sd1")
    expected = 2 * updates(first)[QUERY] - read(second).modules[QUERY].delta()
    torch.testing.assert_close(found[QUERY], expected, rtol=1e-6, atol=1e-6)
    assert read(tmp_path / "mix.safetensors").modules[QUERY].rank == 2


def test_ties_keeps_what_agrees(two: tuple[str, str], tmp_path: Path) -> None:
    a, b = two
    found = mixed(tmp_path, f"{a}:0.8", f"{b}:-0.5", method="ties", rank=64, density=0.4)[KEY]
    stacked = np.stack([0.8 * updates(a)[KEY].numpy(), -0.5 * updates(b)[KEY].numpy()])
    for update in stacked:
        kept = int(0.4 * update.size)
        update[np.abs(update) < np.sort(np.abs(update).ravel())[-kept]] = 0
    elected = np.where(stacked.sum(0) >= 0, 1, -1)
    agreeing = np.sign(stacked) == elected
    expected = (stacked * agreeing).sum(0) / np.maximum(agreeing.sum(0), 1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_dare_keeps_the_mean_depends_on_the_seed_and_repeats(two: tuple[str, str], tmp_path: Path) -> None:
    a, b = two
    exact = mixed(tmp_path, a, b)[KEY]
    generated = [mixed(tmp_path, a, b, method="dare", rank=64, density=0.5, seed=seed)[KEY] for seed in range(60)]
    spread = float((torch.stack(generated).mean(0) - exact).norm() / exact.norm())
    assert spread < 0.25  # one generate is off by about 1, the mean of 60 by about 1 / sqrt(60)
    assert float((generated[0] - exact).norm() / exact.norm()) > 0.5
    assert not torch.equal(generated[0], generated[1])
    assert torch.equal(generated[3], mixed(tmp_path, a, b, method="dare", rank=64, density=0.5, seed=3)[KEY])
    signs = mixed(tmp_path, a, b, method="dare-ties", rank=64, density=0.5, seed=3)[KEY]
    assert not torch.equal(signs, generated[3])


def test_different_families_are_refused_with_both_named(two: tuple[str, str], tmp_path: Path) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    xl = {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}
    other = written(tmp_path, "xl", xl)
    with pytest.raises(AdapterError, match=r"a.safetensors is for sd1, xl.safetensors is for sdxl"):
        mixed(tmp_path, two[0], other)


@pytest.mark.parametrize(("said", "prediction"), [("v", "v_prediction"), ("flow", "flow"), ("edm_v", "edm_v")])
def test_predictions_that_differ_are_refused(tmp_path: Path, said: str, prediction: str) -> None:
    first = written(tmp_path, "a", lora(KEY, 1), metadata={"modelspec.prediction_type": said})
    second = written(tmp_path, "b", lora(KEY, 2), metadata={"ss_base_model_version": "sd_v1"})
    with pytest.raises(AdapterError, match=f"different prediction.*a.safetensors for {prediction}"):
        mixed(tmp_path, first, second)


def test_shapes_that_differ_are_refused(two: tuple[str, str], tmp_path: Path) -> None:
    wide = {f"{QUERY}.lora_down.weight": torch.ones(2, 12), f"{QUERY}.lora_up.weight": torch.ones(8, 2)}
    with pytest.raises(AdapterError, match=r"layers of different shapes, \[8, 10\] and \[8, 12\]"):
        mixed(tmp_path, two[0], written(tmp_path, "wide", wide))


def test_a_file_that_does_not_tell_its_family_needs_it(tmp_path: Path) -> None:
    path = written(tmp_path, "a", lora(QUERY, 1))
    with pytest.raises(AdapterError, match="doesn't tell its Stable Diffusion family; give it: --family"):
        mixed(tmp_path, path)
    assert mixed(tmp_path, path, family="sd2").keys() == {QUERY}


def test_weights_of_zero_leave_nothing(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="every weight is 0"):
        mixed(tmp_path, f"{two[0]}:0")


def test_a_projection_stored_as_convolution_mixes_with_one_stored_as_matrix(tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_1_attentions_0_proj_in"
    flat = {f"{name}.lora_down.weight": torch.ones(1, 6), f"{name}.lora_up.weight": torch.ones(4, 1)}
    conv = {key: tensor[:, :, None, None] for key, tensor in flat.items()}
    key = lora(KEY, 1)
    found = mixed(tmp_path, written(tmp_path, "a", flat, key), written(tmp_path, "b", conv, key))
    assert found[name].shape == (4, 6, 1, 1)
    torch.testing.assert_close(found[name], torch.full((4, 6, 1, 1), 2.0, dtype=torch.float64))


def test_the_file_says_what_it_is_made_of(two: tuple[str, str], tmp_path: Path) -> None:
    a, b = two
    mixed(tmp_path, f"{a}:0.8", f"{b}:unet=-1,te=0,MID=0.5", method="svd", rank=1)
    file = read(tmp_path / "mix.safetensors")
    made = json.loads(file.metadata["sdlora.provenance"])
    assert made["command"] == "mix"
    assert made["settings"] == {"method": "svd", "rank": 1}
    assert made["relative_error"] > 0.01
    assert made["inputs"][0]["file"] == "a.safetensors"
    assert made["inputs"][0]["hash"] == read(a).model_hash
    assert made["inputs"][1]["weights"] == {"unet": -1.0, "text_encoder": 0.0, "blocks": {"MID": 0.5}}
    assert file.metadata["modelspec.merged_from"] == "a.safetensors, b.safetensors"
    assert file.metadata["modelspec.trigger_phrase"] == "sks"
    assert file.metadata["ss_base_model_version"] == "sd_v1"
    assert file.metadata["sshs_model_hash"] == file.model_hash
    assert "ss_learning_rate" not in file.metadata
    resize_adapter(tmp_path / "mix.safetensors", tmp_path / "small.safetensors", rank=1)
    nested = json.loads(read(tmp_path / "small.safetensors").metadata["sdlora.provenance"])
    assert nested["inputs"][0]["made"]["command"] == "mix"


def test_nothing_is_overwritten_without_force(two: tuple[str, str], tmp_path: Path) -> None:
    config = MixConfig(adapters=[MixedAdapter(file=two[0])])
    mix_adapters(config, tmp_path / "mix.safetensors")
    with pytest.raises(AdapterError, match="mix.safetensors exists already; choose another name, or give --force"):
        mix_adapters(config, tmp_path / "mix.safetensors")
    mix_adapters(config, tmp_path / "mix.safetensors", force=True)


def test_a_dora_adapter_is_not_resized(tmp_path: Path) -> None:
    path = written(tmp_path, "a", lora(KEY, 1), {f"{KEY}.dora_scale": torch.ones(8, 1)})
    with pytest.raises(AdapterError, match="is DoRA, which can't be resized as it is"):
        resize_adapter(path, tmp_path / "b.safetensors", rank=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", {"weight": 1.0}),
        ("a.safetensors:0.8", {"weight": 0.8}),
        ("a.safetensors:-1", {"weight": -1.0}),
        ("a.safetensors:.5:te=0", {"weight": 0.5, "text_encoder": 0.0}),
        (r"C:\loras\a.safetensors:0.8", {"weight": 0.8, "file": r"C:\loras\a.safetensors"}),
        ("hf://me/mine:0.5", {"weight": 0.5, "file": "hf://me/mine"}),
        ("a.safetensors:unet=0.6,te=0.3,te2=0.1", {"unet": 0.6, "text_encoder": 0.3, "text_encoder_2": 0.1}),
        ("a.safetensors:blocks=[1, 0,0.5],te=0", {"blocks": [1.0, 0.0, 0.5], "text_encoder": 0.0}),
        ("a.safetensors:MID=0.5,OUT03=-1", {"blocks": {"MID": 0.5, "OUT03": -1.0}}),
    ],
)
def test_adapters_are_spelled_on_the_command_line(text: str, expected: dict[str, Any]) -> None:
    parsed = parse_adapter(text)
    assert parsed.model_dump(exclude_defaults=True, exclude={"file"} - expected.keys()) == {
        name: value for name, value in expected.items() if (name, value) != ("weight", 1.0)
    }


def test_a_weight_that_is_no_number_is_no_missing_file(tmp_path: Path) -> None:
    file = random_adapter(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="'0,8' is no weight: write a number, with a point and no comma"):
        require_files([f"{file}:0,8"])
    with pytest.raises(AdapterError, match="b.safetensors:0,8: there is no such file"):
        require_files([f"{tmp_path / 'b.safetensors'}:0,8"])


def test_weights_without_layers_and_files_that_are_there_twice_are_said(tmp_path: Path) -> None:
    file = random_adapter(tmp_path / "a.safetensors", text_encoder=False)
    config = MixConfig(adapters=[parse_adapter(f"{file}:te=0.5"), parse_adapter(f"{file}:unet=0.5")])
    notes = mix_adapters(config, tmp_path / "mixed.safetensors").result.notes
    assert "a.safetensors: text_encoder=0.5 has no effect: the adapter has no layers there" in notes
    assert "a.safetensors is there 2 times: its weights add up" in notes
    assert not any("unet" in note for note in notes)


def test_a_folder_model_is_not_merged_into_what_is_called_a_file(tmp_path: Path) -> None:
    file = random_adapter(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="a model that is a folder becomes a folder; leave the ending out"):
        merge_adapters("builtin:emoji", [MixedAdapter(file=str(file))], tmp_path / "merged.safetensors")


@pytest.mark.parametrize("name", ["mm", "pic.png", "new.pt", "ink-v1.5"])
def test_an_adapter_is_written_under_no_name_that_tells_something_else(tmp_path: Path, name: str) -> None:
    file, out = str(random_adapter(tmp_path / "a.safetensors")), tmp_path / name
    right = {"mm": "mm", "pic.png": "pic", "new.pt": "new", "ink-v1.5": "ink-v1.5"}[name]
    told = rf"is a .safetensors file; give it that ending: {right}\.safetensors"
    nothing = str(tmp_path / "nothing.safetensors")  # told before a file is read
    for make in (
        lambda: mix_adapters(MixConfig(adapters=[MixedAdapter(file=nothing)]), out),
        lambda: resize_adapter(nothing, out, rank=2),
        lambda: convert(nothing, out, "diffusers", force=True),
        lambda: extract_adapter(nothing, nothing, out),
        lambda: require_files([file], out=out, suffix=".safetensors"),
    ):
        with pytest.raises(AdapterError, match=told):
            make()
    with pytest.raises(AdapterError, match="leave the ending out of its name: merged"):
        merge_adapters("builtin:emoji", [MixedAdapter(file=file)], tmp_path / "merged.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.safetensors:unet=much", "'much' is not a number"),
        ("a.safetensors:vae=1", "'vae' is not known here; use unet, te, te2, blocks"),
        ("a.safetensors:blocks=OUTD,MID=1", "give either blocks=... or single blocks"),
        ("a.safetensors:unet=1,,", "is not a list of name=value"),
        ("a.safetensors:OUT03=0,MID=1,OUT03=1", "OUT03 is given twice"),
        ("a.safetensors:te=0,te=1", "te is given twice"),
        ("a.safetensors:0,5", "':0,5' is no weight; write a number with a point"),
        ("a.safetensors:nan", "':nan' is no weight"),
        ("a.safetensors:50%", "':50%' is no weight"),
        ("a.safetensors:MIDD", "':MIDD' is no weight"),
        ("a.safetensors:0.5,unet=0.2", "':0.5,unet=0.2' is no weight; .* behind another colon"),
        ("a.safetensors:0.5:0.3", "':0.5' is no weight"),
        ("ink:0,5", "':0,5' is no weight"),
    ],
)
def test_misspelled_adapters_are_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_adapter(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "svd"}, "method svd needs a rank or an energy"),
        ({"rank": 4}, "rank and energy have no effect with method concat; use svd"),
        ({"density": 0.3}, "density has no effect with method concat; use ties or dare or dare-ties"),
        ({"method": "ties", "rank": 4, "seed": 3}, "seed has no effect with method ties; use dare or dare-ties"),
        ({"method": "ties", "rank": 4, "density": 1.5}, "density: must be less than 1; got 1.5"),
        ({"methd": "svd"}, "methd: unknown setting; did you mean 'method'?"),
        ({"adapters": []}, "adapters: "),
    ],
)
def test_wrong_settings_of_a_mix_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        validate({"adapters": [{"file": "a.safetensors"}], **settings}, "mix.yaml", MixConfig)
