"""Images that differ each time they are seen, and crops that keep a face or a subject."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageDraw

from sdlora.config import files
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.buckets import Bucket, Placement
from sdlora.data.crops import fixed_crop, prepare_mask, prepare_pixels, sample_crop
from sdlora.data.focus import Box, face_in_name, focus_of
from sdlora.data.images import ImageRecord, scan
from sdlora.data.variation import PLAIN, Variation, draw_variation, recoloured, turned, zoomed
from sdlora.errors import ConfigError, DataError
from sdlora.training.inputs.images import find_images
from sdlora.training.preflight.remarks import remarks

WIDE = Placement(Bucket(64, 64), 200, 64, 1.0)


def one_image(folder: Path, image: Image.Image, name: str = "a.png", **settings: object) -> ImageRecord:
    image.save(folder / name)
    return scan(ImagesConfig(folder=folder, cache=False, **settings), CaptionsConfig(default="")).records[0]


def test_settings_that_are_off_draw_nothing() -> None:
    generator = random.Random(0)
    before = generator.getstate()
    assert draw_variation(ImagesConfig(), generator) == PLAIN
    assert generator.getstate() == before


def test_variations_stay_within_their_bounds() -> None:
    images = ImagesConfig(crop_jitter=0.2, rotation=10, colour_jitter=0.3, hue_jitter=30)
    drawn = [draw_variation(images, random.Random(seed)) for seed in range(200)]
    assert 1 <= min(one.zoom for one in drawn) < 1.02 < 1.18 < max(one.zoom for one in drawn) <= 1.2
    assert -10 <= min(one.degrees for one in drawn) < -9 < 9 < max(one.degrees for one in drawn) <= 10
    assert 0.7 <= min(one.contrast for one in drawn) < 0.75 < 1.25 < max(one.contrast for one in drawn) <= 1.3
    assert -30 <= min(one.hue_degrees for one in drawn) < -25 < 25 < max(one.hue_degrees for one in drawn) <= 30


@pytest.mark.parametrize("degrees", [-45, -7, 12, 30])
def test_a_turned_image_has_no_empty_corner_and_turns_to_the_left(degrees: float) -> None:
    image = Image.new("RGB", (120, 60), "white")
    ImageDraw.Draw(image).rectangle((60, 27, 120, 33), fill="red")
    pixels = numpy.asarray(turned(image, degrees))
    corners = [tuple(pixels[y, x]) for y in (0, 59) for x in (0, 119)]
    assert set(corners) <= {(255, 255, 255), (255, 0, 0)}, "a corner outside the picture would be black"
    rows = numpy.nonzero((pixels[:, 90] == (255, 0, 0)).all(axis=1))[0]
    assert rows.size == 0 or (rows.mean() < 30) == (degrees > 0)


def test_a_mask_turns_with_its_image(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((32, 0, 63, 63), fill=(255, 255, 255, 255))
    record = one_image(tmp_path, image, mask="alpha")
    placement, variation = Placement(Bucket(64, 64), 64, 64, 1.0), Variation(degrees=30)
    arguments = {"flip": False, "crop_xy": None, "variation": variation}
    pixels_HW = prepare_pixels(record, placement, background="#000000", **arguments)[0]
    mask_HW = prepare_mask(record, placement, **arguments).pixels_HW
    assert torch.allclose((pixels_HW + 1) / 2, mask_HW, atol=0.02)
    assert mask_HW[5, 20] == 1 - mask_HW[58, 43]


def test_colours_change_by_their_factors() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    assert recoloured(grey, Variation(brightness=1.2)).getpixel((0, 0)) == (120, 120, 120)
    red = Image.new("RGB", (4, 4), (200, 0, 0))
    assert recoloured(red, Variation(hue_degrees=120)).getpixel((0, 0))[1] > 190
    assert recoloured(red, Variation(saturation=0.5)).getpixel((0, 0))[1] > 0
    assert recoloured(red, PLAIN) is red


def test_zoom_gives_the_window_room() -> None:
    assert zoomed(WIDE, 1.5).crop_room_px == (236, 32)
    assert zoomed(WIDE, 1.0) is WIDE


def test_a_face_is_read_from_the_name_as_sd_scripts_writes_it() -> None:
    assert face_in_name(Path("me_0100_0050_0040_0020.png"), 200, 100) == Box(0.4, 0.4, 0.6, 0.6)
    assert face_in_name(Path("trip_2024_01_02_03.png"), 4000, 3000) is None, "a date"
    assert face_in_name(Path("me_900_50_40_20.png"), 200, 100) is None, "outside the picture"


def test_a_crop_is_centred_on_the_focus_and_random_ones_keep_it_whole() -> None:
    right = Box(0.8, 0.2, 0.95, 0.8)
    assert fixed_crop(WIDE, None) == (68, 0)
    assert fixed_crop(WIDE, right) == (136, 0)
    places = [sample_crop(WIDE, random.Random(seed), right)[0] for seed in range(100)]
    assert min(places) == 126
    assert max(places) == 136
    too_large = Box(0.0, 0.0, 0.9, 1.0)
    assert {sample_crop(WIDE, random.Random(seed), too_large) for seed in range(9)} == {fixed_crop(WIDE, too_large)}


def test_a_mask_is_a_focus(tmp_path: Path) -> None:
    image = Image.new("RGBA", (200, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((150, 10, 189, 50), fill=(255, 255, 255, 255))
    record = one_image(tmp_path, image, mask="alpha", crop_focus="mask")
    assert focus_of(record) == Box(0.75, 10 / 64, 0.95, 51 / 64)
    pixels = prepare_pixels(record, WIDE, flip=False, crop_xy=None, background="#000000")
    assert (pixels[0] == 1).sum() == 40 * 41, "the whole subject is in the window"


def test_settings_without_what_they_need_are_refused(tiny_images: Path) -> None:
    with pytest.raises(ConfigError, match=r"crop_focus=mask needs images\.mask"):
        files.load(overrides=["images.crop_focus=mask"])
    with pytest.raises(DataError, match=r"none of the names of the 10 images tells where its face is"):
        find_images(files.load(overrides=[f"images.folder={tiny_images}", "images.crop_focus=face"]))


def test_a_run_says_what_varies_and_which_images_have_no_face(tmp_path: Path) -> None:
    for name in ("a_30_30_20_20", "b"):
        Image.new("RGB", (96, 64)).save(tmp_path / f"{name}.png")
    settings = [f"images.folder={tmp_path}", "captions.default=x", "images.crop_focus=face", "images.hue_jitter=5"]
    config = files.load(overrides=[*settings, "images.resolution=64", "images.bucket_step=32"])
    told = "\n".join(text for _, text in remarks(config, find_images(config)))
    assert "images are encoded at every step" in told
    assert "cut at the centre, as their names tell no face: b.png" in told
