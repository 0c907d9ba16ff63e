"""Pixels, masks and size conditions share one geometry."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.buckets import Bucket, BucketedImage, Placement, assign
from sdlora.data.crops import prepare_mask, prepare_pixels, sample_crop, size_conditions
from sdlora.data.images import ImageRecord, scan
from sdlora.errors import DataError

WHITE = "#ffffff"


def ramp(folder: Path, width: int = 200, height: int = 100) -> ImageRecord:
    """An image whose red channel is the column and green channel the row."""
    rows, columns = numpy.mgrid[0:height, 0:width]
    pixels = numpy.stack([columns, rows, 0 * rows], axis=-1).astype(numpy.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return scan(ImagesConfig(folder=folder, cache=False), CaptionsConfig(default="")).records[0]


def placed(record: ImageRecord, **settings: object) -> BucketedImage:
    return assign([record], ImagesConfig(**settings))[0]


def as_bytes(pixels_CHW: torch.Tensor) -> numpy.ndarray:
    return ((pixels_CHW + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


UNSCALED = Placement(Bucket(64, 64), 200, 100, 1.0)


def test_pixels_are_float32_between_minus_one_and_one(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100), (0, 255, 51)).save(tmp_path / "a.png")
    record = scan(ImagesConfig(folder=tmp_path, cache=False), CaptionsConfig(default="")).records[0]
    placement = placed(record, resolution=64).placement
    pixels_CHW = prepare_pixels(record, placement, flip=False, crop_xy=None, background=WHITE)
    assert (pixels_CHW.shape, pixels_CHW.dtype) == ((3, 64, 64), torch.float32)
    assert torch.allclose(pixels_CHW[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]), atol=1e-6)


def test_the_window_is_cut_where_it_is_asked_for(tmp_path: Path) -> None:
    record = ramp(tmp_path)
    centre = as_bytes(prepare_pixels(record, UNSCALED, flip=False, crop_xy=None, background=WHITE))
    assert tuple(centre[0, 0]) == (68, 18, 0)
    corner = as_bytes(prepare_pixels(record, UNSCALED, flip=False, crop_xy=(136, 36), background=WHITE))
    assert tuple(corner[-1, -1]) == (199, 99, 0)


def test_a_flip_mirrors_the_same_window(tmp_path: Path) -> None:
    record = ramp(tmp_path)
    plain = prepare_pixels(record, UNSCALED, flip=False, crop_xy=(5, 6), background=WHITE)
    mirrored = prepare_pixels(record, UNSCALED, flip=True, crop_xy=(5, 6), background=WHITE)
    assert torch.equal(mirrored, plain.flip(2))


def test_a_window_outside_the_image_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"crop_xy \(137, 0\) leaves the image: the window can move by \(136, 36\)"):
        prepare_pixels(ramp(tmp_path), UNSCALED, flip=False, crop_xy=(137, 0), background=WHITE)


@pytest.mark.parametrize("crop_xy", [(0, 0), (20, 30), (136, 36)])
@pytest.mark.parametrize("flip", [False, True])
def test_size_conditions_say_where_the_window_lies_in_the_image_the_model_sees(
    tmp_path: Path, crop_xy: tuple[int, int], flip: bool
) -> None:
    """Cutting at the conditions' place from the (mirrored) whole image gives the very same pixels."""
    record = ramp(tmp_path)
    conditions = size_conditions(record, UNSCALED, flip=flip, crop_xy=crop_xy)
    whole = Image.open(record.path)
    if flip:
        whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = conditions.crop_left, conditions.crop_top
    expected = numpy.asarray(whole.crop((left, top, left + 64, top + 64)))
    pixels = as_bytes(prepare_pixels(record, UNSCALED, flip=flip, crop_xy=crop_xy, background=WHITE))
    assert numpy.array_equal(pixels, expected)
    assert tuple(conditions)[:2] == (100, 200)
    assert tuple(conditions)[4:] == (64, 64)


def test_random_windows_stay_inside_and_reach_every_place() -> None:
    placement = Placement(Bucket(64, 64), 66, 64, 1.0)
    places = {sample_crop(placement, random.Random(seed)) for seed in range(60)}
    assert places == {(0, 0), (1, 0), (2, 0)}


def test_the_mask_follows_the_pixels_and_is_averaged_for_the_latents(tmp_path: Path) -> None:
    record = ramp(tmp_path)
    mask = Image.new("L", (200, 100), 0)
    mask.paste(255, (0, 0, 100, 100))
    mask.save(tmp_path / "a-masklabel.png")
    record = scan(ImagesConfig(folder=tmp_path, cache=False, mask="file"), CaptionsConfig(default="")).records[0]
    for flip in (False, True):
        got = prepare_mask(record, UNSCALED, flip=flip, crop_xy=(60, 0))
        pixels = as_bytes(prepare_pixels(record, UNSCALED, flip=flip, crop_xy=(60, 0), background=WHITE))
        assert numpy.array_equal(got.pixels_HW.numpy(), (pixels[:, :, 0] < 100).astype(numpy.float32))
        assert got.latents_HW.shape == (8, 8)
        assert torch.allclose(got.latents_HW, got.pixels_HW.reshape(8, 8, 8, 8).mean(dim=(1, 3)))


def test_outside_the_mask_the_given_weight_counts(tmp_path: Path) -> None:
    ramp(tmp_path)
    Image.new("L", (200, 100), 0).save(tmp_path / "a-masklabel.png")
    record = scan(ImagesConfig(folder=tmp_path, cache=False, mask="file"), CaptionsConfig(default="")).records[0]
    mask = prepare_mask(record, UNSCALED, flip=False, crop_xy=None, unmasked_weight=0.1)
    assert torch.allclose(mask.latents_HW, torch.full((8, 8), 0.1))


def test_an_image_without_a_mask_counts_everywhere(tmp_path: Path) -> None:
    mask = prepare_mask(ramp(tmp_path), UNSCALED, flip=True, crop_xy=None)
    assert torch.equal(mask.latents_HW, torch.ones(8, 8))


def test_a_file_that_goes_bad_after_the_scan_is_named(tmp_path: Path) -> None:
    record = ramp(tmp_path)
    record.path.write_text("no")
    with pytest.raises(DataError, match=r"a\.png .*was readable when it was scanned, but is not now: not a JPEG"):
        prepare_pixels(record, UNSCALED, flip=False, crop_xy=None, background=WHITE)
    record.path.unlink()
    with pytest.raises(DataError, match=r"a\.png .*but is not now: can't be opened \(No such file"):
        prepare_pixels(record, UNSCALED, flip=False, crop_xy=None, background=WHITE)


@pytest.mark.parametrize("size", [(61, 33), (1000, 300), (64, 64), (3, 500)])
def test_any_image_fills_its_bucket(tmp_path: Path, size: tuple[int, int]) -> None:
    record = ramp(tmp_path, *size)
    placement = placed(record, resolution=128, bucket_step=16).placement
    pixels_CHW = prepare_pixels(record, placement, flip=True, crop_xy=None, background=WHITE)
    assert pixels_CHW.shape == (3, placement.bucket.height_px, placement.bucket.width_px)
