"""Inpainting bases (9 channels): trained with drawn masks or the images' own, exported, generated with."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from PIL import Image, ImageDraw

from sdlora.adapters.files.reading import read
from sdlora.config import files
from sdlora.config.base_model import BaseModelConfig, FamilyName
from sdlora.config.train import TrainConfig
from sdlora.data.strokes import draw_mask
from sdlora.errors import ConfigError
from sdlora.events import EventStream
from sdlora.generation.generate import generate
from sdlora.models.inpainting import inpaint_conditions
from sdlora.models.loading import load
from sdlora.training.inputs.examples import BatchSource
from sdlora.training.inputs.images import find_images
from sdlora.training.inputs.latents import LatentSource
from sdlora.training.loop.run import train
from tests.support.tiny_models import build, save_single_file

FAMILIES: tuple[tuple[FamilyName, str], ...] = (("sd1", "folder"), ("sd1", "file"), ("sd2", "file"), ("sdxl", "folder"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    place = tmp_path_factory.mktemp("inpainting")
    folders = {family: build(family, place / family, inpainting=True) for family in ("sd1", "sd2", "sdxl")}
    kinds = {(family, "folder"): folder for family, folder in folders.items()}
    return kinds | {
        (family, "file"): save_single_file(folders[family], place / f"{family}.safetensors")
        for family in ("sd1", "sd2")
    }


def config(model: Path, images: Path, out: Path, *settings: str) -> TrainConfig:
    return files.load(
        overrides=[
            f"base_model.model={model}",
            f"images.folder={images}",
            f"outputs.folder={out}",
            "images.resolution=64",
            "images.bucket_step=32",
            "images.cache=false",
            "optimization.steps=2",
            "optimization.precision=fp32",
            "optimization.batch_size=1",
            "adapter.rank=2",
            "name=ink",
            *settings,
        ]
    )


@pytest.mark.parametrize("kind", FAMILIES, ids="-".join)
def test_two_steps_with_drawn_masks_previews_and_self_test(
    models: dict[tuple[str, str], Path], kind: tuple[str, str], tiny_images: Path, tmp_path: Path
) -> None:
    asked = ("previews.prompts=[a fox]", "previews.steps=2", "validation.fraction=0.2")
    result = train(config(models[kind], tiny_images, tmp_path, *asked))
    log = (result.folder / "log.txt").read_text(encoding="utf-8")
    assert f"{kind[0]}, inpainting, " in log
    assert "random masks are drawn" in log
    assert "self-test passed" in log
    assert result.relative_loss is not None
    assert read(result.adapter).unused == ()


@pytest.fixture
def masked_images(tmp_path: Path) -> Path:
    """Two pictures with a transparent part and a mask file that covers another."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        image = Image.new("RGBA", (64, 64), (40, 90 * index, 200, 255))
        ImageDraw.Draw(image).rectangle((0, 0, 31, 63), fill=(0, 0, 0, 0))
        image.save(folder / f"{index}.png")
        mask = Image.new("L", (64, 64), 0)
        ImageDraw.Draw(mask).rectangle((0, 0, 63, 31), fill=255)
        mask.save(folder / f"{index}-masklabel.png")
        (folder / f"{index}.txt").write_text("a square", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("source", "painted"), [("file", (slice(0, 4), slice(0, 8))), ("alpha", (slice(0, 8), slice(4, 8)))]
)
def test_the_images_own_masks_say_what_is_painted(
    models: dict[tuple[str, str], Path], masked_images: Path, tmp_path: Path, source: str, painted: tuple[slice, slice]
) -> None:
    asked = config(
        models["sd1", "folder"], masked_images, tmp_path, f"images.mask={source}", "images.inpaint_mask=mask"
    )
    batch = batches(asked).batch(0)
    assert batch.inpaint_B5HW is not None
    expected = torch.zeros(8, 8)
    expected[painted] = 1
    assert torch.equal(batch.inpaint_B5HW[0, 0], expected)
    assert train(asked).step == 2


def batches(asked: TrainConfig) -> BatchSource:
    bundle = load(asked.resolved_base_model)
    images = find_images(asked)
    latents = LatentSource(bundle, asked.images, None)
    latents.prepare(images.placed, EventStream([]))
    return BatchSource(images.placed, latents, batch_size=1, seed=asked.seed)


def test_drawn_masks_hang_on_seed_position_and_row_only(
    models: dict[tuple[str, str], Path], tiny_images: Path, tmp_path: Path
) -> None:
    asked = config(models["sd1", "folder"], tiny_images, tmp_path)
    one, other = batches(asked), batches(asked)
    later = one.batch(3)
    for position in range(3):  # another way to the same position
        other.batch(position)
    assert torch.equal(later.inpaint_B5HW, other.batch(3).inpaint_B5HW)
    masks = {one.batch(position).inpaint_B5HW[0, 0].numpy().tobytes() for position in range(6)}
    assert len(masks) > 1


def test_masks_cover_everything_a_quarter_of_the_time_and_never_nothing() -> None:
    generator = random.Random(0)
    shares = [numpy.asarray(draw_mask(96, 64, generator)).mean() / 255 for _ in range(400)]
    assert min(shares) > 0
    assert 0.2 < sum(share == 1 for share in shares) / len(shares) < 0.3
    assert 0.1 < numpy.mean([share for share in shares if share < 1]) < 0.6


def test_mask_and_masked_picture_are_what_diffusers_gives_such_a_unet(models: dict[tuple[str, str], Path]) -> None:
    bundle = load(BaseModelConfig(model=str(models["sd1", "folder"]), precision="fp32"))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((1, 3, 64, 48), generator=generator) * 2 - 1
    mask = torch.zeros(1, 1, 64, 48)
    mask[..., 11:40, 5:30] = 1
    parts = (bundle.vae, bundle.text_encoders[0], bundle.tokenizers[0], bundle.unet, DDIMScheduler())
    pipeline = StableDiffusionInpaintPipeline(*parts, None, None, requires_safety_checker=False)
    # It would draw from the VAE's distribution; ours is the mean of it.
    scale = bundle.vae.config.scaling_factor
    pipeline._encode_vae_image = lambda image, generator: scale * bundle.vae.encode(image).latent_dist.mean
    with torch.no_grad():
        theirs = pipeline.prepare_mask_latents(
            mask, pixels * (mask < 0.5), 1, 64, 48, torch.float32, torch.device("cpu"), None, False
        )
    torch.testing.assert_close(inpaint_conditions(bundle, pixels, mask), torch.cat(theirs, dim=1))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_picture_keeps_what_the_mask_leaves(models: dict[tuple[str, str], Path], family: str, tmp_path: Path) -> None:
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    picture.save(tmp_path / "start.png")
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((32, 0, 63, 63), fill=255)
    mask.save(tmp_path / "mask.png")
    request = {
        "base_model": {"model": str(models[family, "folder"])}, "prompt": "a fox", "steps": 3, "seed": 1,
        "width_px": 64, "height_px": 64, "compute": {"precision": "fp32"},
    }  # fmt: skip
    start = {"image": tmp_path / "start.png", "mask": tmp_path / "mask.png", "strength": 1.0, "mask_blur_px": 0}
    (made,) = generate({**request, "start": start})
    new, old = numpy.asarray(made.image, int), numpy.asarray(picture, int)
    assert numpy.array_equal(new[:, :32], old[:, :32])
    assert numpy.abs(new[:, 32:] - old[:, 32:]).mean() > 10
    # The picture that stays is an input: another one there changes what is painted, with the same noise.
    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    (other,) = generate({**request, "start": start})
    assert numpy.abs(numpy.asarray(other.image, int)[:, 32:] - new[:, 32:]).mean() > 0.5
    (plain,) = generate(request)  # without a picture everything is painted
    assert plain.image.size == (64, 64)


def test_a_mask_setting_without_an_inpainting_model_or_without_masks_is_refused(
    shallow_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    asked = ("images.inpaint_mask=mask", "images.mask=alpha")
    with pytest.raises(ConfigError, match=r"images.inpaint_mask=mask has no effect(.|\n)*is no inpainting model"):
        train(config(shallow_sd1, tiny_images, tmp_path, *asked))
    with pytest.raises(ConfigError, match="inpaint_mask=mask needs images.mask, alpha or file"):
        config(shallow_sd1, tiny_images, tmp_path, "images.inpaint_mask=mask")
