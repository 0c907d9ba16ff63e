"""What changes the strength of a foreign adapter's layers beside their factors: each layer has its writer's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora.adapters.algebra.convert import convert
from sdlora.adapters.algebra.making import mix_adapters
from sdlora.adapters.files.embeddings import embeddings_in
from sdlora.adapters.files.reading import read
from sdlora.adapters.hub.inspection import inspect
from sdlora.config.mix import MixConfig, MixedAdapter
from sdlora.errors import AdapterError
from tests.support.foreign_adapters import Algorithm, glora, loha, lokr_full, write_foreign
from tests.support.foreign_layouts import LAYOUTS

LAYOUT = LAYOUTS["kohya"]
NAME = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"
RANDOM = torch.Generator().manual_seed(3)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM)


def lora(name: str, down: str = "lora_down.weight", up: str = "lora_up.weight") -> dict[str, Tensor]:
    return {f"{name}.{down}": random(4, 768), f"{name}.{up}": random(640, 4)}


def product(tensors: Mapping[str, Tensor]) -> Tensor:
    """Of the first two tensors, which are down and up."""
    down, up = list(tensors.values())[:2]
    return up.double() @ down.double()


def saved(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), folder / "x.safetensors")
    return folder / "x.safetensors"


def test_a_trained_scalar_of_early_lycoris_multiplies_the_update(tmp_path: Path) -> None:
    tensors = lora(NAME)
    more = {f"{NAME}.alpha": torch.tensor(2.0), f"{NAME}.scalar": torch.tensor(0.3)}
    file = read(saved(tmp_path, tensors | more))
    assert file.unused == ()
    torch.testing.assert_close(file.modules[NAME].delta(), product(tensors) * 0.5 * 0.3, rtol=1e-6, atol=1e-6)
    first, second = random(4, 4), random(160, 192)
    whole = {f"{NAME}.lokr_w1": first, f"{NAME}.lokr_w2": second, f"{NAME}.scalar": torch.tensor(0.3)}
    expected = torch.kron(first, second).double() * 0.3
    torch.testing.assert_close(read(saved(tmp_path, whole)).modules[NAME].delta(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1e10, float("inf")])
def test_the_idle_alpha_of_a_whole_lokr_may_be_beyond_its_number_type(tmp_path: Path, alpha: float) -> None:
    first, second = random(4, 4), random(160, 192)
    tensors = {f"{NAME}.lokr_w1": first, f"{NAME}.lokr_w2": second, f"{NAME}.alpha": torch.tensor(alpha)}
    path = saved(tmp_path, tensors)
    expected = torch.kron(first, second).double()
    torch.testing.assert_close(read(path).modules[NAME].delta(), expected, rtol=1e-6, atol=1e-6)
    convert(path, tmp_path / "y.safetensors", "kohya")
    torch.testing.assert_close(read(tmp_path / "y.safetensors").modules[NAME].delta(), expected, rtol=1e-6, atol=1e-6)


def test_a_lokr_of_two_ranks_is_divided_by_the_second_as_elsewhere(tmp_path: Path) -> None:
    halves = {
        "lokr_w1_a": random(4, 2),
        "lokr_w1_b": random(2, 4),
        "lokr_w2_a": random(160, 4),
        "lokr_w2_b": random(4, 192),
    }
    tensors = {f"{NAME}.{name}": half for name, half in halves.items()}
    file = read(saved(tmp_path, tensors | {f"{NAME}.alpha": torch.tensor(2.0)}))
    first, second, third, fourth = (half.double() for half in halves.values())
    torch.testing.assert_close(file.modules[NAME].delta(), torch.kron(first @ second, third @ fourth) / 2)


@pytest.mark.parametrize(
    ("kohya_alpha", "others"),
    [
        # the one that comes first has no alpha, and must not get the other's
        (True, lora(f"base_model.model.{PATH}", "lora_A.weight", "lora_B.weight")),
        (False, lora(NAME, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight")),
        (False, lora(NAME, "lora_A.a.weight", "lora_B.a.weight")),
    ],
)
def test_of_a_layer_that_stands_in_a_file_twice_one_is_taken_whole(
    tmp_path: Path, kohya_alpha: bool, others: dict[str, Tensor]
) -> None:
    own = lora(NAME)
    alpha = {f"{NAME}.alpha": torch.tensor(2.0)} if kohya_alpha else {}
    file = read(saved(tmp_path, own | others | alpha))
    candidates = [product(own) * (0.5 if kohya_alpha else 1), product(others)]
    found = file.modules[NAME].delta()
    assert sum(torch.allclose(found, one, rtol=1e-5, atol=1e-5) for one in candidates) == 1
    assert len(file.unused) in (2, 3)
    assert all("its layer stands in the file twice" in reason for reason in file.left_out.values())


@pytest.mark.parametrize(
    ("layer", "down", "up", "own"),
    [
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora", "down.weight", "up.weight", TEXT),
        (f"unet.{PATH.removesuffix('to_k')}processor.to_k_lora", "down.weight", "up.weight", NAME),
        (f"unet.{PATH}", "lora_down.default.weight", "lora_up.default.weight", NAME),
        (f"module.{NAME}", "lora_down.weight", "lora_up.weight", NAME),
        (f"_orig_mod.{NAME}", "lora_down.weight", "lora_up.weight", NAME),
    ],
)
def test_spellings_of_old_and_wrapped_writers_are_read_with_their_alpha(
    tmp_path: Path, layer: str, down: str, up: str, own: str
) -> None:
    factors = {f"{layer}.{down}": random(4, 768), f"{layer}.{up}": random(768 if own == TEXT else 640, 4)}
    file = read(saved(tmp_path, factors | {f"{layer}.alpha": torch.tensor(2.0)}), "sd1")
    assert file.unused == ()
    torch.testing.assert_close(file.modules[own].delta(), product(factors) / 2)


@pytest.mark.parametrize("name", [f"{NAME}.strange", f"unet.{PATH}.lora.C", f"{NAME}.set_weight"])
def test_an_unknown_tensor_of_a_stable_diffusion_layer_is_not_called_one_of_another_model(
    tmp_path: Path, name: str
) -> None:
    file = read(saved(tmp_path, lora(NAME) | {name: torch.ones(2)}))
    assert file.unused == (name,)
    assert "another model" not in file.left_out[name]
    with pytest.raises(AdapterError, match="holds no LoRA, LoHa or LoKr layers"):
        read(saved(tmp_path, {name: torch.ones(2)}))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", "a whole base model"),
        ("encoder.conv_in.weight", "a VAE"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight", "an IP-Adapter"),
    ],
)
def test_a_file_that_is_no_adapter_is_named_as_what_it_is(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(AdapterError, match=what):
        read(saved(tmp_path, {name: torch.ones(4, 4)}))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", "lora"])
def test_a_pickle_is_read_below_its_scripts_wrapper_with_alphas_that_are_plain_numbers(
    tmp_path: Path, wrapper: str
) -> None:
    factors = lora(NAME)
    parameters = {key: torch.nn.Parameter(tensor) for key, tensor in factors.items()}
    torch.save({wrapper: {**parameters, f"{NAME}.alpha": 2}, "epoch": 3}, tmp_path / "x.pt")
    weights = read(tmp_path / "x.pt").modules[NAME]
    assert weights.alpha == 2
    torch.testing.assert_close(weights.delta(), product(factors) / 2)


def test_an_embedding_that_is_bundled_is_shown_kept_by_convert_and_its_loss_said_by_others(tmp_path: Path) -> None:
    vectors = random(3, 768)
    path = saved(tmp_path, lora(NAME) | {"bundle_emb.fox.emb_params": vectors, "bundle_emb.bad.x.y": torch.ones(2)})
    assert read(path).unused == ("bundle_emb.bad.x.y",)
    assert "embeddings      fox" in inspect(path).as_text()
    convert(path, tmp_path / "y.safetensors", "kohya")
    torch.testing.assert_close(load_file(tmp_path / "y.safetensors")["bundle_emb.fox.emb_params"], vectors)
    lost = "1 embedding bundled with it is not taken over: fox"
    assert lost in convert(path, tmp_path / "z.safetensors", "diffusers").warnings
    config = MixConfig(adapters=[MixedAdapter(file=str(path))])
    assert f"x.safetensors: {lost}" in mix_adapters(config, tmp_path / "m.safetensors").result.notes


def test_an_adapter_with_a_stray_vector_is_no_embedding(tmp_path: Path) -> None:
    path = saved(tmp_path, lora(NAME) | {"clip_l": random(3, 768)})
    assert embeddings_in(path) == []
    assert read(path).unused == ("clip_l",)


def test_a_long_comment_is_shortened_where_it_is_read(tmp_path: Path) -> None:
    save_file(lora(NAME), tmp_path / "x.safetensors", {"ss_training_comment": "x" * 100_000})
    text = inspect(tmp_path / "x.safetensors").as_text()
    assert "xxx... (100,000 characters)" in text
    assert len(text) < 2_000


@pytest.mark.parametrize(("algorithm", "is_weaker"), [(glora, True), (lokr_full, True), (loha, False)])
def test_a_strength_that_the_file_of_rs_lora_does_not_hold_is_said(
    tmp_path: Path, algorithm: Algorithm, is_weaker: bool
) -> None:
    path, _ = write_foreign(tmp_path, LAYOUT, algorithm, "sd1")
    assert not any("rs_lora" in note for note in read(path).notes)
    save_file(load_file(path), path, {"ss_network_args": '{"algo": "x", "rs_lora": "True"}'})
    assert any("weaker by the square root of their rank" in note for note in read(path).notes) == is_weaker


def test_one_part_of_an_adapter_in_several_files_is_said_to_be_one(tmp_path: Path) -> None:
    path, _ = write_foreign(tmp_path, LAYOUT, loha, "sd1")
    part = path.rename(path.with_name("adapter_model-00002-of-00003.safetensors"))
    assert any("it is part 2 of 3 of an adapter" in note for note in read(part).notes)
