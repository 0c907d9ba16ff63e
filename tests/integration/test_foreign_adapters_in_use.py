"""Adapters of other tools in commands: merged into a model and live in generation they do the same, and all is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from sdlora.adapters.algebra.base_weights import open_base
from sdlora.adapters.algebra.convert import convert
from sdlora.adapters.algebra.loaded_base import load_base
from sdlora.adapters.algebra.making import merge_adapters, mix_adapters
from sdlora.adapters.files.reading import read
from sdlora.cli import adapters as _commands  # noqa: F401  (registers them)
from sdlora.cli.app import app
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.config.mix import MixConfig, MixedAdapter
from sdlora.errors import AdapterError
from sdlora.generation.generate import Generator
from sdlora.generation.sampling.adapted_base import AdaptedBase
from sdlora.generation.sampling.pool import AdapterPool
from sdlora.models.bundle import Bundle
from sdlora.models.loading import load
from tests.support.foreign_adapters import lora, write_foreign
from tests.support.foreign_layouts import LAYOUTS
from tests.support.tiny_models import save_single_file


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def folder(request: pytest.FixtureRequest) -> Path:
    model: Path = request.getfixturevalue(f"tiny_{request.param}")
    return model


def many_kinds(model: Path, file: Path) -> Path:
    """A file in which layers have updates of every kind that kohya-like layouts hold, and biases and norms."""
    base = open_base(str(model))
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    tensors: dict[str, Tensor] = {}
    linear = [name for name, place in base.places.items() if len(place.shape) == 2 and "attn" in name]
    convolutions = [name for name, place in base.places.items() if len(place.shape) == 4 and place.shape[-1] == 3]
    unet = [name for name in linear if name.startswith("lora_unet") and name.endswith("to_out_0")]
    text = [name for name in linear if name.startswith("lora_te")]
    for name in (unet[0], text[0], text[-1], convolutions[3]):
        shape = base.places[name].shape
        tensors |= {f"{name}.diff": random(*shape), f"{name}.diff_b": random(shape[0])}
    for name in (unet[1], convolutions[4]):
        shape = base.places[name].shape
        tensors |= {f"{name}.oft_blocks": random(shape[0] // 8, 8, 8), f"{name}.alpha": torch.tensor(0.0)}
    shape = base.places[unet[2]].shape
    tensors |= {f"{unet[2]}.weight": random(shape[1]), f"{unet[2]}.on_input": torch.tensor(1)}
    rows, columns = base.places[unet[3]].shape
    for name, size in {"a1": (columns, 2), "a2": (2, columns), "b1": (rows, 2), "b2": (2, columns)}.items():
        tensors[f"{unet[3]}.{name}.weight"] = random(*size)
    tensors[f"{unet[3]}.alpha"] = torch.tensor(1.0)
    norms = [place for place in base.vectors if "norm" in place[0] and place[1] == "weight"]
    for name, _ in (norms[0], norms[len(norms) // 2], norms[-1], next(p for p in norms if "_te" in p[0])):
        size = base.vectors[name, "weight"].shape[0]
        tensors |= {f"{name}.w_norm": random(size), f"{name}.b_norm": random(size)}
    if base.family == "sdxl":
        size = base.places["lora_te2_text_projection"].shape
        down, up = random(2, size[1]), random(size[0], 2)
        name = "lora_te2_text_projection"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    version = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[base.family]
    save_file(tensors, file, {"ss_base_model_version": version})
    return file


def loaded(model: Path) -> Bundle:
    return load(BaseModelConfig(model=str(model), precision="fp32"))


@torch.no_grad()
def answer(bundle: Bundle) -> tuple[Tensor, Tensor]:
    """The UNet's output for fixed input, and the text states of a caption (with what is pooled of them)."""
    family, generator = bundle.family, torch.Generator().manual_seed(1)
    states = family.encode_text(bundle, ["a red fox"])
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    size = [family.full_size_conditions(128, 128)]
    image = family.predict(bundle, latents, torch.tensor([400]), states, size)
    pooled = [] if states.pooled_BD is None else [states.pooled_BD.flatten()]
    return image, torch.cat([states.states_BTD.flatten(), *pooled])


def live(model: Path, file: Path, weight: float, *, merged: bool) -> tuple[Tensor, Tensor]:
    bundle = loaded(model)
    base = AdaptedBase(bundle)
    used = (AdapterPool(base).get(UsedAdapter(file=str(file), weight=weight)),)
    base.use_for_text(used)
    text = answer(bundle)[1]
    states = bundle.family.encode_text(bundle, ["a red fox"])
    base.merge(used) if merged else base.use([used], 1)
    with torch.no_grad():
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        size = [bundle.family.full_size_conditions(128, 128)]
        return bundle.family.predict(bundle, latents, torch.tensor([400]), states, size), text


@torch.no_grad()
def test_merged_and_live_adapters_of_every_kind_do_the_same(folder: Path, tmp_path: Path) -> None:
    file = many_kinds(folder, tmp_path / "kinds.safetensors")
    assert read(file).unused == ()
    plain = answer(loaded(folder))
    merged = merge_adapters(str(folder), [MixedAdapter(file=str(file), weight=0.5)], tmp_path / "model")
    assert merged.unplaced == ()
    expected = answer(loaded(tmp_path / "model"))
    assert not torch.allclose(plain[0], expected[0], atol=1e-2)
    assert not torch.allclose(plain[1], expected[1], atol=1e-2)
    for as_weights in (False, True):
        found = live(folder, file, 0.5, merged=as_weights)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    single = save_single_file(folder, tmp_path / "single.safetensors")
    merged = merge_adapters(str(single), [MixedAdapter(file=str(file), weight=0.5)], tmp_path / "out.safetensors")
    assert merged.unplaced == ()
    for one, other in zip(answer(loaded(tmp_path / "out.safetensors")), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_mix_of_every_kind_does_the_same_as_the_file(shallow_sd1: Path, tmp_path: Path) -> None:
    file = many_kinds(shallow_sd1, tmp_path / "kinds.safetensors")
    one = [MixedAdapter(file=str(file), weight=0.5)]
    with pytest.raises(AdapterError, match=r"kinds.safetensors is \w+, whose update depends on the base weights"):
        mix_adapters(MixConfig(adapters=one), tmp_path / "mix.safetensors")
    config = MixConfig(adapters=one, base_model=str(shallow_sd1), precision="fp32")
    mix_adapters(config, tmp_path / "mix.safetensors")
    for found, expected in zip(
        live(shallow_sd1, tmp_path / "mix.safetensors", 1.0, merged=False),
        live(shallow_sd1, file, 0.5, merged=False),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output + repr(result.exception)
    return " ".join(result.output.split())


def test_a_bias_that_the_model_has_not_is_named(shallow_sd1: Path, tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.diff": torch.ones(32, 32), f"{name}.diff_b": torch.ones(32)}, tmp_path / "b.safetensors")
    merged = merge_adapters(str(shallow_sd1), [MixedAdapter(file=str(tmp_path / "b.safetensors"))], tmp_path / "model")
    assert merged.changed == (name,)
    assert merged.notes == (f"the model has not 1 biases and norms of the adapters: {name} (bias)",)


def test_commands_name_what_they_cannot_use_with_a_count(shallow_sd1: Path, tmp_path: Path) -> None:
    file = many_kinds(shallow_sd1, tmp_path / "kinds.safetensors")
    strange = {"lora_unet_down_blocks_9_proj.diff": torch.ones(2, 2), "lora_unet_x.set_weight": torch.ones(1, 4)}
    save_file(load_file(file) | strange, file)
    named = (
        "2 tensors are not used: 1 (replaces a whole weight, which is no update): lora_unet_x.set_weight; 1 (no layer"
    )
    base = ["--base", str(shallow_sd1)]
    assert named in run("merge", str(file), *base, "--out", str(tmp_path / "merged"))
    assert named in run("mix", str(file), *base, "--family", "sd1", "--out", str(tmp_path / "mix.safetensors"))
    assert named in run(
        "convert", str(file), "--to", "kohya", "--family", "sd1", "--out", str(tmp_path / "c.safetensors")
    )
    told = json.loads(run("inspect", str(file), "--quick", "--json"))["files"][0]["unused_because"]
    assert [one["count"] for one in told] == [1, 1]
    assert any("no layer of" in one["reason"] for one in told)
    assert "not understood 1 tensors: lora_unet_down_blocks_9_proj.diff (no layer of" in run(
        "inspect", str(file), *base
    )


def test_an_sd1_file_that_says_sdxl_is_inspected_and_converted_as_what_it_is(tmp_path: Path) -> None:
    path, _ = write_foreign(tmp_path, LAYOUTS["kohya, original names"], lora, "sd1")
    save_file(load_file(path), path, {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "x"})
    assert "its metadata say sdxl, but the shapes of its layers are those of sd1" in run("inspect", str(path))
    run("convert", str(path), "--to", "kohya", "--out", str(tmp_path / "new.safetensors"))
    new = read(tmp_path / "new.safetensors")
    assert new.family == "sd1"
    assert new.metadata["ss_base_model_version"].startswith("sd_v1")
    assert new.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert new.modules.keys() == read(path).modules.keys()


def test_what_is_converted_keeps_every_update(tmp_path: Path, shallow_sd1: Path) -> None:
    file = many_kinds(shallow_sd1, tmp_path / "kinds.safetensors")
    run("convert", str(file), "--to", "kohya", "--out", str(tmp_path / "new.safetensors"))
    before, after = read(file), read(tmp_path / "new.safetensors")
    base = open_base(str(shallow_sd1))
    assert before.vectors.keys() == after.vectors.keys()
    for name, weights in before.modules.items():
        weight = base.weight(name)
        torch.testing.assert_close(after.modules[name].delta_on(weight), weights.delta_on(weight), rtol=0, atol=0)
    with pytest.raises(AdapterError, match="diffusers' layout can't hold updates of biases and norms"):
        convert(file, tmp_path / "d.safetensors", "diffusers")


def test_a_base_model_goes_before_a_guess_at_the_family(tiny_sdxl: Path, shallow_sd1: Path, tmp_path: Path) -> None:
    name = "text_model_encoder_layers_0_self_attn_q_proj"
    width = open_base(str(tiny_sdxl)).places[f"lora_te1_{name}"].shape[0]
    down, up = torch.ones(2, width), torch.ones(width, 2)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    file = tmp_path / "te.safetensors"
    save_file({f"lora_te_{name}.{factor}": tensor for factor, tensor in tensors.items()}, file)
    assert read(file).family == "sd1"
    assert "alike: taken as sd1 for the prefix lora_te_" in read(file).notes[0]
    for model, own in ((tiny_sdxl, f"lora_te1_{name}"), (shallow_sd1, f"lora_te_{name}")):
        merged = merge_adapters(str(model), [MixedAdapter(file=str(file))], tmp_path / own)
        assert merged.changed == (own,)


def test_generate_takes_a_folder_and_a_pickle(shallow_sd1: Path, tmp_path: Path) -> None:
    name = "up_blocks.3.attentions.2.proj_out"
    keys = {"A": torch.ones(2, 32, 1, 1), "B": torch.ones(32, 2, 1, 1)}
    peft = {f"base_model.model.{name}.lora_{letter}.weight": tensor for letter, tensor in keys.items()}
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(peft, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    flat = f"lora_unet_{name.replace('.', '_')}"
    own = {"lora_down.weight": keys["A"], "lora_up.weight": keys["B"], "alpha": torch.tensor(6.0)}
    torch.save({f"{flat}.{factor}": tensor for factor, tensor in own.items()}, tmp_path / "kohya.pt")
    generator = Generator(BaseModelConfig(model=str(shallow_sd1)))
    images = []
    for file in (folder, tmp_path / "kohya.pt", None):
        used = () if file is None else (UsedAdapter(file=str(file)),)
        request = GenerateConfig(
            base_model=BaseModelConfig(model=str(shallow_sd1)),
            adapters=used,
            steps=1,
            width_px=64,
            height_px=64,
            seed=1,
        )
        (image,) = generator.generate(request)
        images.append(image.image.tobytes())
    assert images[0] == images[1] != images[2]


def test_adapters_merged_in_memory_do_what_a_merged_model_does(shallow_sd1: Path, tmp_path: Path) -> None:
    file = many_kinds(shallow_sd1, tmp_path / "kinds.safetensors")
    save_file(load_file(file) | {"strange": torch.ones(1)}, tmp_path / "again.safetensors", {"ss_v2": "False"})
    pair = [str(file), str(tmp_path / "again.safetensors")]
    merge_adapters(str(shallow_sd1), [MixedAdapter(file=one, weight=0.5) for one in pair], tmp_path / "model")
    adapters = [{"file": one, "weight": 0.5} for one in pair]
    config = BaseModelConfig.model_validate({"model": str(shallow_sd1), "precision": "fp32", "adapters": adapters})
    bundle = load_base(config)
    for found, expected in zip(answer(bundle), answer(loaded(tmp_path / "model")), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert any("again.safetensors: 1 tensor is not used" in note for note in bundle.notes)
