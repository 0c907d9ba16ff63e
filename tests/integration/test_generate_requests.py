"""Generating with the embedded base model: start images, the second pass, previews, and requests that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageDraw

from sdlora.config import files
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.generation.generate import Generator, generate
from sdlora.generation.generated import StepPreview
from tests.support.adapter_files import random_adapter
from tests.support.emoji_requests import FEW, MODEL, one, pixels, request_of


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = request_of()
    return Generator(config.base_model, config.compute)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("RGB", (200, 100), "#dd8833")
    ImageDraw.Draw(image).ellipse((60, 10, 140, 90), fill="#3355aa")
    image.save(tmp_path / "start.png")
    mask = Image.new("L", (200, 100))
    mask.paste(255, (0, 0, 60, 100))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "start.png"


def test_the_size_follows_the_start_image(generator: Generator, picture: Path) -> None:
    generated = one(generator, request_of(start={"image": picture, "strength": 0.4}, width_px=None, height_px=None))
    assert generated.image.size == (184, 88)
    assert (generated.config.width_px, generated.config.height_px) == (184, 88)


def test_inpainting_keeps_every_pixel_outside_the_mask(generator: Generator, picture: Path) -> None:
    start = {"image": picture, "mask": picture.with_name("mask.png"), "strength": 1.0, "mask_blur_px": 2}
    generated = one(generator, request_of(start=start, width_px=128, height_px=64, sampler="Euler a"))
    with Image.open(picture) as opened:
        original = numpy.asarray(opened.resize((128, 64), Image.Resampling.LANCZOS)).astype(int)
    changed = numpy.abs(pixels(generated) - original).max(axis=2)
    assert changed[:, 50:].max() == 0
    assert changed[:, :34].mean() > 5


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_the_second_pass_draws_larger_and_can_be_repeated(generator: Generator, upscaler: str) -> None:
    second = {"scale": 1.5, "strength": 0.5, "steps": 4, "upscaler": upscaler}
    steps: list[StepPreview] = []
    config = request_of(second_pass=second, sampler="Euler a", num_images=2)
    first, other = generator.generate(config, on_step=steps.append)
    assert first.image.size == (96, 96)
    assert [(step.step, step.total_steps) for step in steps] == [(number, 5) for number in range(1, 6)]
    assert one(generator, other.config).image.tobytes() == other.image.tobytes()


def test_previews_look_like_the_picture(generator: Generator) -> None:
    steps: list[StepPreview] = []
    (generated,) = generator.generate(request_of(steps=8), on_step=steps.append)
    (preview,) = steps[-1].images()
    assert preview.size == (32, 32)
    small = generated.image.resize(preview.size, Image.Resampling.BOX)
    likeness = numpy.corrcoef(numpy.asarray(preview).ravel(), numpy.asarray(small).ravel())[0, 1]
    assert likeness > 0.8


def test_cancelling_keeps_the_images_that_are_finished(generator: Generator) -> None:
    steps: list[StepPreview] = []
    generated = generator.generate(
        request_of(num_images=5, batch_size=2), on_step=steps.append, is_cancelled=lambda: len(steps) >= 5
    )
    assert [image.config.seed for image in generated] == [11, 12]
    assert [step.image_index for step in steps] == [0, 0, 0, 2, 2]


def test_cancelling_leaves_a_pass_in_its_middle_and_the_model_as_it_was(generator: Generator) -> None:
    request = request_of(steps=1)
    before = [generated.image.tobytes() for generated in generator.generate(request)]
    asked = 0

    def is_cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 10

    assert list(generator.generate(request, is_cancelled=is_cancelled)) == []
    assert asked == 11
    assert [generated.image.tobytes() for generated in generator.generate(request)] == before


def test_a_folder_that_is_not_there_is_refused_even_where_no_tag_asks_for_it(tmp_path: Path) -> None:
    kinds = ("adapter", "embedding", "wildcard")
    config = request_of(prompt="a cat", **{f"{name}_folders": (tmp_path / name[0],) for name in kinds})
    with pytest.raises(ConfigError) as caught:
        generate(config)
    told = [f"{name}_folders: {tmp_path / name[0]}: no such folder" for name in kinds]
    assert caught.value.problems == told


def test_everything_wrong_is_told_at_once_before_a_model_is_loaded(
    tiny_sdxl: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdlora.generation.generate.load_base", lambda *_, **__: pytest.fail("a model was loaded"))
    foreign = random_adapter(tiny_sdxl, tmp_path / "sdxl.safetensors", layers=r"lora_te2.*_0_self_attn_q_proj")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("L", (100, 100)).save(tmp_path / "square.png")
    config = request_of(
        sampler="LCM",
        steps=60,
        prompt="a cat <lora:nowhere:1>",
        adapter_folders=(tmp_path,),
        adapters=(
            UsedAdapter(file=str(foreign)),
            UsedAdapter(file="gone.safetensors"),
            UsedAdapter(file=str(foreign), blocks="MIDDLE"),
        ),
        start={"image": picture, "mask": tmp_path / "square.png"},
        compute={"device": "cuda:7"},
    )
    with pytest.raises(ConfigError) as caught:
        generate(config)
    told = "\n".join(caught.value.problems)
    for expected in (
        "<lora:nowhere:1>: no adapter of that name is in",
        "start.mask: 100x100 px has another shape than the image, 200x100 px",
        "sdxl.safetensors is for sdxl, the base model is sd1",
        "gone.safetensors: there is no such file",
        "the LCM sampler takes at most 50, not 60",
        "there is no 'cuda:7' on this machine",
    ):
        assert expected in told, told
    with pytest.raises(ConfigError, match=r"start.image: .*broken.png: not a JPEG, PNG"):
        generate(request_of(start={"image": tmp_path / "broken.png"}))
    fitting = str(random_adapter(MODEL, tmp_path / "a.safetensors", layers=FEW))
    with pytest.raises(ConfigError, match="no weights are called 'MIDDLE'"):
        generate(request_of(adapters=(UsedAdapter(file=fitting, blocks="MIDDLE"),)))
    with pytest.raises(ConfigError, match="'moon' is no device; use cpu, cuda, mps or auto"):
        generate(request_of(compute={"device": "moon"}))


def test_flags_and_a_yaml_request_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from sdlora.cli import app

    seen: list[GenerateConfig] = []
    monkeypatch.setattr("sdlora.cli.generate._generate", seen.append)
    file = tmp_path / "request.yaml"
    file.write_text(
        """
prompt: a cat
negative: dog
adapters: [{file: ink.safetensors, weight: 0.8, start: 0.2}]
sampler: Euler a
steps: 7
guidance: 3.5
seed: 5
width_px: 96
height_px: 64
num_images: 3
batch_size: 2
start: {image: start.png, strength: 0.6}
files: {folder: pictures}
compute: {precision: fp32}
""",
        encoding="utf-8",
    )
    flags = [
        "--prompt",
        "a cat",
        "--negative",
        "dog",
        "--adapter",
        "ink.safetensors:0.8:start=0.2",
        "--sampler",
        "Euler a",
    ]
    flags += ["--steps", "7", "--cfg", "3.5", "--seed", "5", "--size", "96x64", "--count", "3", "--batch", "2"]
    flags += ["--image", "start.png", "--strength", "0.6", "--out", "pictures", "--set", "compute.precision=fp32"]
    for arguments in (flags, [str(file)], [str(file), "--seed", "6", "--set", "start.strength=0.9"]):
        result = CliRunner().invoke(app, ["generate", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert seen[0] == seen[1] == files.validate(files.read_yaml(file), "x", GenerateConfig)
    changed = seen[2].model_dump(exclude={"seed": True, "start": {"strength"}})
    assert changed == seen[0].model_dump(exclude={"seed": True, "start": {"strength"}})
    assert (seen[2].seed, seen[2].start.strength) == (6, 0.9)
    with pytest.raises(ConfigError, match="--size 96: write width and height as 512x768"):
        CliRunner().invoke(app, ["generate", "--size", "96"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="'begin' is not known here; use unet, te, te2, start, end, blocks"):
        CliRunner().invoke(app, ["generate", "--adapter", "a.safetensors:begin=1"], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"start 0.8 must come before end 0.2"):
        CliRunner().invoke(app, ["generate", "--adapter", "a.safetensors:start=0.8,end=0.2"], catch_exceptions=False)
