"""Training and generating on top of adapters that are merged into the base model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdlora.adapters.algebra.loaded_base import load_base
from sdlora.adapters.files.reading import read
from sdlora.adapters.live.attach import attach
from sdlora.config import files
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig, MergedAdapter
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.generation.generated import GeneratedImage, GenerationFacts
from sdlora.generation.request.requests import resolve
from sdlora.generation.restore.infotext import to_infotext
from sdlora.generation.restore.request_json import read_request, request_of
from sdlora.generation.sampling.adapted_base import AdaptedBase
from sdlora.generation.sampling.pool import AdapterPool
from sdlora.models.quantize import QuantizedLayer
from sdlora.runs import changes
from sdlora.runs import folder as run_folder
from sdlora.training.loop.run import train
from tests.support.adapter_files import random_adapter as adapter_of
from tests.support.emoji_adapters import random_adapter


@pytest.fixture
def style(tmp_path: Path) -> Path:
    return random_adapter(tmp_path / "style.safetensors", 1)


def test_base_weights_hold_the_adapters_at_their_weights(style: Path, tmp_path: Path) -> None:
    other = random_adapter(tmp_path / "other.safetensors", 2)
    plain = load_base(BaseModelConfig(precision="fp32"))
    merged = load_base(
        BaseModelConfig(
            precision="fp32",
            adapters=(MergedAdapter(file=str(style)), MergedAdapter(file=str(other), weight=-0.5)),
        )
    )
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    name = f"lora_unet_{path.replace('.', '_')}"
    change = merged.unet.get_submodule(path).weight - plain.unet.get_submodule(path).weight
    expected = read(style).modules[name].delta() - 0.5 * read(other).modules[name].delta()
    torch.testing.assert_close(change.double(), expected, rtol=1e-3, atol=1e-5)
    assert merged.text_identity != plain.text_identity, "cached text states belong to one of them"
    assert merged.identity != plain.identity
    assert any("merged style.safetensors at weight 1 into" in note for note in merged.notes)


@pytest.mark.parametrize("told", ["v", "epsilon"])
def test_an_adapter_of_another_prediction_than_the_bases_is_said_wherever_it_is_used(tmp_path: Path, told: str) -> None:
    file = random_adapter(tmp_path / "other.safetensors", 1)
    save_file(load_file(file), file, {"modelspec.prediction_type": told})
    merged = load_base(BaseModelConfig(precision="fp32", adapters=(MergedAdapter(file=str(file)),)))
    bundle = load_base(BaseModelConfig(precision="fp32"))
    used = AdapterPool(AdaptedBase(bundle), prediction="epsilon").get(UsedAdapter(file=str(file)))
    in_file = any(not name.startswith("lora_unet_") for name in read(file).modules)
    went_on = attach(bundle, AdapterConfig(start_from=str(file), text_encoder=in_file))
    said = "other.safetensors was trained on a model that predicts v_prediction"
    for notes in (merged.notes, used.loaded.warnings, went_on.notes):
        assert any(said in note for note in notes) == (told == "v"), notes


def test_a_base_with_adapters_can_be_quantised(style: Path) -> None:
    bundle = load_base(BaseModelConfig(quantization="int8", adapters=(MergedAdapter(file=str(style)),)))
    assert any(isinstance(module, QuantizedLayer) for module in bundle.unet.modules())


def test_a_run_on_top_of_an_adapter_says_so_in_its_file(style: Path, tiny_images: Path, tmp_path: Path) -> None:
    settings = [
        f"base_model.adapters=[{{file: {style}, weight: 0.8}}]", f"images.folder={tiny_images}",
        "images.resolution=64", "images.bucket_step=32", "adapter.rank=2", "adapter.layers=attention",
        "optimization.steps=1", "optimization.precision=fp32", f"outputs.folder={tmp_path / 'runs'}",
    ]  # fmt: skip
    result = train(files.load(overrides=settings))
    told = read(result.adapter).metadata
    assert json.loads(told["sdlora.base_adapters"]) == [{"file": "style.safetensors", "weight": 0.8}]
    from sdlora.cli.grids import run_settings

    assert run_settings(result.folder)["base_model"]["adapters"] == [{"file": str(style), "weight": 0.8}]


def test_a_run_keeps_its_base_adapters_wherever_it_is_resumed(
    style: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tags.txt").write_text("red")
    settings = [
        f"base_model.adapters=[{style.name}]",
        f"images.folder={tiny_images}",
        "captions.protected_tags=tags.txt",
    ]
    config = files.load(overrides=[*settings, "captions.tag_dropout=0.5", "outputs.folder=runs"])
    folder = run_folder.create(config)
    _, kept = run_folder.open_run(folder.path)
    assert [one.file for one in kept.base_model.adapters] == [str(style)]
    assert kept.captions.protected_tags == tmp_path / "tags.txt"
    with pytest.raises(ConfigError, match=r"base_model\.adapters: an adapter belongs to the base model it began on"):
        changes.planned(folder.path, ["base_model.adapters=[]"])


def test_an_image_tells_of_the_adapters_in_its_base_without_the_users_name(
    style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: style.parent)
    base = BaseModelConfig(adapters=(MergedAdapter(file=str(style), weight=0.8),))
    config = GenerateConfig(base_model=base, prompt="a cat", seed=1, width_px=64, height_px=64)
    facts = GenerationFacts("m", None, {}, "sd1", "epsilon", 0.0)
    assert '"style: 0.8"' in to_infotext(config, facts)
    request = request_of(GeneratedImage(Image.new("RGB", (8, 8)), config, facts))["request"]
    assert request["base_model"]["adapters"] == [{"file": "~/style.safetensors", "weight": 0.8}]
    read = read_request(json.dumps({"request": request}))
    assert read.values["base_model"]["adapters"][0]["file"] == str(style)


def test_adapters_that_do_not_fit_the_base_are_refused_before_it_is_loaded(
    tmp_path: Path, tiny_images: Path, tiny_sdxl: Path
) -> None:
    wrong = adapter_of(tiny_sdxl, tmp_path / "xl.safetensors", layers=r"lora_te2.*_0_self_attn_q_proj")
    gone = tmp_path / "gone.safetensors"
    for file, said in ((wrong, "different families|is for sdxl"), (gone, "gone.safetensors")):
        config = files.load(overrides=[f"base_model.adapters=[{file}]", f"images.folder={tiny_images}"])
        with pytest.raises(ConfigError, match=rf"(?s)base_model\.adapters.*({said})"):
            train(config)
        with pytest.raises(ConfigError, match=r"base_model\.adapters\.0"):
            resolve(GenerateConfig(base_model=config.base_model, prompt="a cat"))
