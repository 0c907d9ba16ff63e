"""Adapter files that are nearly right: read as they are meant, or refused with what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters.algebra.making import mix_adapters, resize_adapter
from sdlora.adapters.files.reading import read
from sdlora.errors import AdapterError

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
Q, K, NORM = f"{BLOCK}_attn1_to_q", f"{BLOCK}_attn2_to_k", f"{BLOCK}_norm1"


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def lora(name: str = Q, inputs: int = 320, alpha: float = 4.0) -> dict[str, Tensor]:
    factors = {"lora_down.weight": random(4, inputs), "lora_up.weight": random(320, 4), "alpha": torch.tensor(alpha)}
    return {f"{name}.{factor}": tensor for factor, tensor in factors.items()}


def saved(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file(tensors, folder / "x.safetensors", {"ss_base_model_version": "sd_v1", **metadata})
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.oft_blocks": random(40, 8, 9)}, r"shapes don't fit each other: oft_blocks \[40, 8, 9\]"),
        ({f"{Q}.oft_blocks": random(7, 40, 8, 8)}, r"shapes don't fit each other: oft_blocks \[7, 40, 8, 8\]"),
        ({f"{Q}.oft_blocks": random(2, 64, 5, 5)}, r"shapes don't fit each other: oft_blocks \[2, 64, 5, 5\]"),
        ({f"{Q}.oft_blocks": random(40, 8, 8), f"{Q}.rescale": random(321, 1)}, r"rescale \[321, 1\]"),
        ({f"{Q}.oft_R": random(40, 29)}, r"shapes don't fit each other: oft_R \[40, 29\]"),
        ({f"{Q}.oft_R": random(40, 28, 1)}, r"shapes don't fit each other: oft_R \[40, 28, 1\]"),
        ({**lora(), f"{Q}.diff_b": random(321)}, "a bias of 321 values for 320 outputs"),
        ({**lora(), f"{Q}.dora_scale": torch.ones(320, 1).int()}, r"DoRA magnitude is in whole numbers \(int32\)"),
        ({f"{Q}.diff": random(320)}, r"holds nothing that fits a layer of Stable Diffusion 1.x: .*diff \[320\]"),
        (
            {key.replace("lora_unet", "LORA_UNET"): tensor for key, tensor in lora().items()},
            "holds 2 factors of layers whose names are of no Stable Diffusion model, such as LORA_UNET",
        ),
    ],
)
def test_what_makes_no_layer_is_refused_where_it_is_read(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        read(saved(tmp_path, tensors))


def test_a_product_on_a_norm_is_left_out_and_named(tmp_path: Path) -> None:
    file = read(saved(tmp_path, {**lora(), **lora(K, 768), **lora(NORM)}))
    assert (set(file.modules), file.notes) == ({Q, K}, ())
    assert "3 (its shape fits no layer of that kind)" in (file.unused_note() or "")


def test_metadata_of_another_model_are_said_to_contradict_the_layers(tmp_path: Path) -> None:
    file = read(saved(tmp_path, {**lora(), **lora(K, 768)}, **{"modelspec.architecture": "flux-1-dev/lora"}))
    assert file.family == "sd1"
    assert file.notes == ("its metadata say flux-1-dev/lora, but its layers are those of Stable Diffusion",)


@pytest.mark.parametrize("alpha", [1e-3, 1e-5, 1e-7, -1e-6])
def test_a_weak_adapter_is_mixed_into_half_precision_with_all_its_digits(tmp_path: Path, alpha: float) -> None:
    path = saved(tmp_path, {**lora(alpha=alpha), **lora(K, 768, alpha=1.0)})
    settings = {"adapters": [f"{path}:0.1"], "precision": "fp16"}
    mix_adapters(settings, tmp_path / "out.safetensors")
    expected, found = (read(file).modules[Q].delta() for file in (path, tmp_path / "out.safetensors"))
    assert float((found - 0.1 * expected).norm() / (0.1 * expected).norm()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_an_adapter_in_8_bits_is_resized_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    path = saved(tmp_path, {key: tensor.to(dtype) for key, tensor in {**lora(), **lora(K, 768)}.items()})
    resize_adapter(path, tmp_path / "out.safetensors", rank=8)
    assert torch.equal(read(tmp_path / "out.safetensors").modules[Q].delta(), read(path).modules[Q].delta())


@pytest.mark.parametrize("ending", [".Alpha", "_alpha", ".lora_alpha", ".scale", ".lora_scale.weight"])
def test_a_scale_that_is_not_understood_is_no_scale_of_1(tmp_path: Path, ending: str) -> None:
    with pytest.raises(AdapterError, match=f"scales a layer by {Q}{ending}, which is not understood"):
        read(saved(tmp_path, {**lora(), f"{Q}{ending}": torch.tensor(2.0)}))


def test_a_pickle_with_a_dictionary_for_each_part_is_read(tmp_path: Path) -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {f"{path}.lora_A.weight": random(4, 320), f"{path}.lora_B.weight": random(320, 4)}
    torch.save({"unet": factors, "step": 100}, tmp_path / "x.pt")
    assert set(read(tmp_path / "x.pt").modules) == {Q}
    torch.save({0: random(4, 320), 1: random(320, 4)}, tmp_path / "numbered.pt")
    with pytest.raises(AdapterError, match=r"holds no LoRA, .*it holds 0, \.\.\."):
        read(tmp_path / "numbered.pt")


def test_layers_that_have_numbers_only_are_named_as_the_first_tools(tmp_path: Path) -> None:
    tensors = {"unet:0:up": random(320, 4), "unet:0:down": random(4, 320), "<s1>": random(1, 768)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match="not read: the first LoRA tool's, whose layers have numbers and no names"):
        read(tmp_path / "x.safetensors")


def peft_folder(folder: Path, **settings: object) -> Path:
    layer = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{layer}.lora_A.weight": random(4, 320), f"{layer}.lora_B.weight": random(320, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_rank_other_than_that_of_the_settings_is_said(tmp_path: Path) -> None:
    assert read(peft_folder(tmp_path)).notes == ()
    assert read(peft_folder(tmp_path, r=16, rank_pattern={"to_q": 4})).notes == ()
    (note,) = read(peft_folder(tmp_path, r=16)).notes
    assert note.startswith("adapter_config.json says rank 16, but 1 of 1 layers have another: their scale is alpha by")


def test_a_dora_that_lost_its_magnitudes_is_said(tmp_path: Path) -> None:
    words = "its settings say DoRA, but no layer has a magnitude"
    assert read(peft_folder(tmp_path, use_dora=True)).notes[0].startswith(words)
    arguments = json.dumps({"algo": "locon", "dora_wd": "True"})
    assert read(saved(tmp_path, lora(), ss_network_args=arguments)).notes[0].startswith(words)
    whole = {**lora(), f"{Q}.dora_scale": torch.ones(320, 1)}
    assert read(saved(tmp_path, whole, ss_network_args=arguments)).notes == ()
    assert read(saved(tmp_path, lora(), ss_network_args=arguments.replace("True", "False"))).notes == ()


def test_a_layer_whose_scalar_is_0_has_no_effect(tmp_path: Path) -> None:
    loha = {f"{K}.hada_w{n}_{ab}": random(320, 4) if ab == "a" else random(4, 768) for n in (1, 2) for ab in "ab"}
    lokr = {f"{Q}.lokr_w1": random(16, 16), f"{Q}.lokr_w2": random(20, 20), f"{Q}.alpha": torch.tensor(4.0)}
    for name, tensors in ((Q, lora()), (K, loha), (Q, lokr)):
        file = read(saved(tmp_path, {**tensors, f"{name}.scalar": torch.tensor(0.0)}))
        assert file.notes == () or name == K
        assert float(file.modules[name].delta().abs().max()) == 0
