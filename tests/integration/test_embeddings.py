"""Textual-inversion embeddings of other tools: read in every form, used by name, with diffusers' own text states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from sdlora.adapters.files.embeddings import read_embedding
from sdlora.adapters.files.reading import read
from sdlora.cli import adapters as _commands  # noqa: F401  (registers them)
from sdlora.cli.app import app
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import AdapterError, ConfigError
from sdlora.generation.generate import Generator
from sdlora.generation.sampling.embeddings import choose_embeddings
from sdlora.models.loading import load
from tests.support.foreign_adapters import lora, write_foreign
from tests.support.foreign_layouts import LAYOUTS


def vectors(number: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed)) * 0.4


@pytest.mark.parametrize(
    "form", ["a1111", "first", "safetensors", "comfyui", "diffusers", "diffusers.bin", "string_to_param"]
)
def test_every_form_of_a_file_holds_the_same_vectors(tmp_path: Path, form: str) -> None:
    wanted = vectors(3, 8)
    path = tmp_path / "fox.safetensors"
    if form in ("a1111", "first"):
        path = tmp_path / "fox.pt"
        held = {"*": wanted} if form == "a1111" else torch.nn.ParameterDict({"*": torch.nn.Parameter(wanted)})
        content = {"string_to_token": {"*": 265}, "string_to_param": held, "name": "fox", "step": 500}
        torch.save(content, path)
    elif form == "diffusers.bin":
        path = tmp_path / "fox.bin"
        torch.save({"<fox>": wanted}, path)
    else:
        key = {"safetensors": "emb_params", "comfyui": "clip_l", "diffusers": "<fox>"}.get(form, "string_to_param.*")
        save_file({key: wanted}, path)
    embedding = read_embedding(path)
    assert embedding.name == "fox"
    assert embedding.left_out == ()
    (found,) = embedding.for_widths([8])
    assert torch.equal(found, wanted)
    with pytest.raises(AdapterError, match=r"is an embedding \(textual inversion\) and has no layers"):
        read(path)


def test_one_vector_without_an_axis_of_its_own_is_read(tmp_path: Path) -> None:
    torch.save({"<fox>": vectors(1, 8)[0]}, tmp_path / "fox.bin")
    assert read_embedding(tmp_path / "fox.bin").vectors["clip_l"].shape == (1, 8)


@pytest.mark.filterwarnings("error")
def test_a_pickle_of_another_protocol_is_read_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "mood.pt"
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}}, path, pickle_protocol=3)
    assert read_embedding(path).vectors.keys() == {"clip_l"}


def test_sdxl_embeddings_have_vectors_for_both_text_encoders(tmp_path: Path) -> None:
    save_file({"clip_l": vectors(2, 8), "clip_g": vectors(2, 12)}, tmp_path / "fox.safetensors")
    embedding = read_embedding(tmp_path / "fox.safetensors")
    assert [one.shape for one in embedding.for_widths([8, 12])] == [(2, 8), (2, 12)]
    with pytest.raises(AdapterError, match="embedding fox is of width 8 and 12, the base model's text encoder of 8"):
        embedding.for_widths([8])
    save_file({"emb_params": vectors(2, 8)}, tmp_path / "old.safetensors")
    with pytest.raises(AdapterError, match="embedding old is of width 8, the base model's text encoder of 8 and 12"):
        read_embedding(tmp_path / "old.safetensors").for_widths([8, 12])


def test_files_that_are_no_embeddings_get_one_clear_error(tmp_path: Path) -> None:
    path, _ = write_foreign(tmp_path, LAYOUTS["kohya"], lora, "sd1")
    with pytest.raises(AdapterError, match="is an adapter, no embedding; what is bundled with it goes by its name"):
        read_embedding(path)
    save_file({"emb_params": torch.full((2, 8), float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(AdapterError, match="a value that is not finite"):
        read_embedding(tmp_path / "nan.safetensors")
    marker = tmp_path / "run"

    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    torch.save({"string_to_param": Harmful()}, tmp_path / "evil.pt")
    with pytest.raises(AdapterError, match="evil.pt is a pickle that holds more than plain tensors"):
        read_embedding(tmp_path / "evil.pt")
    assert not marker.exists()


@torch.no_grad()
def test_a_prompt_with_an_embedding_has_the_text_states_of_diffusers(shallow_sd1: Path, tmp_path: Path) -> None:
    bundle = load(BaseModelConfig(model=str(shallow_sd1), precision="fp32"))
    width = bundle.text_encoders[0].get_input_embeddings().weight.shape[1]
    save_file({"emb_params": vectors(3, width)}, tmp_path / "fox.safetensors")
    chosen = choose_embeddings(["a fox in snow"], [tmp_path], {}, [width])
    plain = bundle.family.encode_text(bundle, ["a fox in snow"]).states_BTD
    bundle.new_tokens = chosen.tokens
    pipeline = StableDiffusionPipeline.from_pretrained(shallow_sd1, safety_checker=None)
    pipeline.load_textual_inversion(str(tmp_path), weight_name="fox.safetensors", token="<fox>")
    expected, _ = pipeline.encode_prompt("a <fox> in snow", "cpu", 1, do_classifier_free_guidance=False)
    for spelled in ("a fox in snow", "a embedding:fox in snow", "a FOX in snow"):
        found = bundle.family.encode_text(bundle, [spelled]).states_BTD
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
    foxes = bundle.family.encode_text(bundle, ["a foxes in snow"]).states_BTD
    bundle.new_tokens = type(bundle.new_tokens)()
    torch.testing.assert_close(foxes, bundle.family.encode_text(bundle, ["a foxes in snow"]).states_BTD)


def request(model: Path | str, **settings: object) -> GenerateConfig:
    values = {"steps": 2, "width_px": 64, "height_px": 64, "seed": 1, "prompt": "a embedding:fox, (fox:1.2)"}
    return GenerateConfig(base_model=BaseModelConfig(model=str(model)), **{**values, **settings})  # type: ignore[arg-type]


def test_generate_uses_embeddings_by_name_and_from_a_bundle(shallow_sd1: Path, tmp_path: Path) -> None:
    generator = Generator(BaseModelConfig(model=str(shallow_sd1)))
    width = generator.bundle.text_encoders[0].get_input_embeddings().weight.shape[1]
    folder = tmp_path / "embeddings"
    folder.mkdir()
    (plain,) = generator.generate(request(shallow_sd1))
    assert any("no embedding of that name is in embedding_folders" in warning for warning in plain.warnings)
    save_file({"emb_params": vectors(2, width) * 20}, folder / "fox.safetensors")
    (used,) = generator.generate(request(shallow_sd1, embedding_folders=(folder,)))
    assert not any("embedding" in warning for warning in used.warnings)
    assert used.image.tobytes() != plain.image.tobytes()
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    rank = {f"{name}.lora_down.weight": torch.zeros(2, 32), f"{name}.lora_up.weight": torch.zeros(32, 2)}
    bundle = {f"{name}.alpha": torch.tensor(2.0), "bundle_emb.fox.emb_params": vectors(2, width) * 20}
    save_file(rank | bundle, tmp_path / "lora.safetensors", {"ss_base_model_version": "sd_v1"})
    assert read(tmp_path / "lora.safetensors").unused == ()
    adapters = (UsedAdapter(file=str(tmp_path / "lora.safetensors")),)
    (bundled,) = generator.generate(request(shallow_sd1, adapters=adapters))
    assert bundled.image.tobytes() == used.image.tobytes()
    shutil.copy(tmp_path / "lora.safetensors", tmp_path / "other.safetensors")
    both = (*adapters, UsedAdapter(file=str(tmp_path / "other.safetensors")))
    (twice,) = generator.generate(request(shallow_sd1, adapters=both))
    assert "'fox' comes with lora.safetensors and other.safetensors: that of the last is used" in twice.warnings
    save_file({"emb_params": vectors(2, width + 1)}, folder / "fox.safetensors")
    (other,) = generator.generate(request(shallow_sd1, embedding_folders=(folder,)))
    assert any("embedding fox is of width" in text and "taken as words" in text for text in other.warnings)
    assert not any("no embedding of that name" in text for text in other.warnings)
    with pytest.raises(ConfigError, match="missing: no such folder"):
        list(generator.generate(request(shallow_sd1, embedding_folders=(tmp_path / "missing",))))


def test_inspect_shows_vectors_norms_and_nearest_words(shallow_sd1: Path, tmp_path: Path) -> None:
    bundle = load(BaseModelConfig(model=str(shallow_sd1), precision="fp32"))
    table = bundle.text_encoders[0].get_input_embeddings().weight.detach()
    number = bundle.tokenizers[0].convert_tokens_to_ids("fox</w>")
    save_file({"emb_params": table[number][None] * 3}, tmp_path / "f.safetensors")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "f.safetensors"), "--base", str(shallow_sd1), "--json"])
    assert result.exit_code == 0, result.output
    (encoder,) = json.loads(result.output)["encoders"]
    assert (encoder["number"], encoder["width"]) == (1, table.shape[1])
    assert encoder["nearest"][0][0] == "fox"
    drawn = CliRunner().invoke(app, ["inspect", str(tmp_path / "f.safetensors"), "--chart", str(tmp_path / "c.png")])
    assert "which has no blocks to draw" in str(drawn.exception)
    text = CliRunner().invoke(app, ["inspect", str(tmp_path / "f.safetensors")]).output
    assert "a textual-inversion embedding; a prompt uses it as embedding:f" in " ".join(text.split())
