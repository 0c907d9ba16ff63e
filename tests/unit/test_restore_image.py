"""Settings out of pictures into a form: what is missing is left out and told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.config.generate import GenerateConfig, StartImageConfig, UsedAdapter
from sdlora.errors import DataError
from sdlora.generation.restore.image_files import save_image
from sdlora.generation.restore.repeat import repeat_image, restore_image
from sdlora.models.headers import file_tensor_hash
from tests.support.emoji_adapters import random_adapter


def picture_of(config: GenerateConfig, path: Path, **hashes: str) -> Path:
    facts = SimpleNamespace(
        model_name="builtin:emoji", model_hash=None, adapter_hashes=hashes, family="sd1", seconds=1.0
    )
    generated: Any = SimpleNamespace(
        image=Image.new("RGB", (64, 64)), config=config, facts=facts, warnings=(), path=None
    )
    return save_image(generated, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one adapter, ink."""
    return random_adapter(tmp_path / "adapters" / "ink.safetensors", 1).parent


MODELS = [("builtin:emoji", "builtin:emoji")]


def test_a_picture_of_ours_gives_everything_back(folder: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.png"
    Image.new("RGB", (8, 8)).save(start)
    config = GenerateConfig(
        prompt="a fox",
        negative="blurry",
        steps=7,
        seed=9,
        width_px=64,
        height_px=64,
        adapters=(UsedAdapter(file="/moved/ink.safetensors", weight=0.5, text_encoder=0.1, end=0.8),),
        start=StartImageConfig(image=start, strength=0.4),
    )
    found = restore_image(picture_of(config, tmp_path / "a.png"), [folder], MODELS)
    assert (found.config.prompt, found.config.steps, found.config.seed) == ("a fox", 7, 9)
    assert found.config.start.strength == 0.4
    assert found.start_image == start
    (adapter,) = found.adapters
    assert (adapter.file, adapter.weight, adapter.text_encoder, adapter.end) == (
        str(folder / "ink.safetensors"), 0.5, 0.1, 0.8,
    )  # fmt: skip
    assert found.notes == ()
    assert {"prompt", "seed", "steps", "base_model.model", "start.strength"} <= set(found.names)
    assert not any(name.startswith(("compute", "files", "num_images")) for name in found.names)


def test_all_but_the_seed_leaves_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    path = picture_of(GenerateConfig(seed=9, width_px=64, height_px=64), tmp_path / "a.png")
    assert "seed" not in restore_image(path, [], MODELS, with_seed=False).names


def test_a_foreign_picture_gives_what_has_a_counterpart_and_names_the_rest(folder: Path, tmp_path: Path) -> None:
    texts = PngInfo()
    texts.add_text(
        "parameters",
        "a fox <lora:ink:0.4> <lora:lost:1>\nNegative prompt: blurry\nSteps: 12, Sampler: Euler a, CFG scale: 5, "
        "Seed: 42, Size: 64x64, Model hash: abc123, Model: dreamthing, Face restoration: CodeFormer",
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=texts)
    found = restore_image(tmp_path / "theirs.png", [folder], MODELS)
    assert (found.config.prompt, found.config.sampler, found.config.seed) == ("a fox", "Euler a", 42)
    assert [(Path(each.file).stem, each.weight) for each in found.adapters] == [("ink", 0.4)]
    told = "\n".join(found.notes)
    assert "<lora:lost:1>: no adapter of that name is in" in told
    assert "base model dreamthing (hash abc123): it is not in the models folder; the chosen one stays" in told
    assert "for want of a counterpart: Face restoration CodeFormer" in told
    assert "base_model.model" not in found.names


def test_a_picture_without_settings_says_so(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(DataError, match="carries no settings"):
        restore_image(tmp_path / "plain.png", [], MODELS)


def test_what_is_gone_is_named(folder: Path, tmp_path: Path) -> None:
    config = GenerateConfig(
        seed=1,
        adapters=(UsedAdapter(file="/gone/lost.safetensors"),),
        start=StartImageConfig(image=Path("/gone/start.png"), mask=Path("/gone/mask.png")),
        width_px=64,
        height_px=64,
    )
    found = restore_image(picture_of(config, tmp_path / "a.png"), [], MODELS)
    told = "\n".join(found.notes)
    assert "lost.safetensors is not there any more, and" in told
    assert "start image /gone/start.png: it is gone" in told
    assert "paint the mask again" in told
    assert found.start_image is None


def test_a_file_with_other_content_is_told_whoever_asks(folder: Path, tmp_path: Path) -> None:
    ink = folder / "ink.safetensors"
    config = GenerateConfig(seed=1, adapters=(UsedAdapter(file=str(ink)),), width_px=64, height_px=64)
    changed = f"{ink} is not the file the picture was generated with: its content differs"
    path = picture_of(config, tmp_path / "a.png", ink="0123456789ab")
    assert changed in restore_image(path, [folder], MODELS).notes
    assert changed in repeat_image(path, [folder]).notes
    same = picture_of(config, tmp_path / "b.png", ink=file_tensor_hash(ink)[:12])
    assert (restore_image(same, [folder], MODELS).notes, repeat_image(same, [folder]).notes) == ((), ())


@pytest.mark.parametrize("is_own", [True, False])
def test_a_comma_in_a_file_name_finds_its_file_whoever_asks(folder: Path, tmp_path: Path, is_own: bool) -> None:
    """The text of other tools has no place for a comma in an adapter's name, so its hash stands there without."""
    renamed = random_adapter(folder / "renamed.safetensors", 7)
    short = file_tensor_hash(renamed)[:12]
    path = tmp_path / "a.png"
    if is_own:
        used = UsedAdapter(file="/gone/ink, blue.safetensors")
        picture_of(GenerateConfig(seed=1, adapters=(used,), width_px=64, height_px=64), path, **{"ink, blue": short})
    else:
        texts = PngInfo()
        text = f'a fox <lora:ink, blue:1>\nSteps: 1, Seed: 1, Model: x, Lora hashes: "ink blue: {short}"'
        texts.add_text("parameters", text)
        Image.new("RGB", (64, 64)).save(path, pnginfo=texts)
    assert [each.file for each in restore_image(path, [folder], MODELS).adapters] == [str(renamed)]
    repeated = repeat_image(path, [folder], base_is_given=True)
    assert [each["file"] for each in repeated.values["adapters"]] == [str(renamed)]
