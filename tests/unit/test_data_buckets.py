"""Bucket sizes and how images get into them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sdlora.config.images import ImagesConfig
from sdlora.data.buckets import Bucket, Placement, assign, bucket_sizes, place
from sdlora.data.images import ImageRecord

edges = st.integers(1, 4000)
resolutions = st.integers(8, 160).map(lambda step: step * 8)
steps = st.sampled_from([8, 16, 32, 64])


def record(width_px: int, height_px: int) -> ImageRecord:
    return ImageRecord(Path("a.png"), width_px, height_px, "", "", 1)


def bucket_of(width_px: int, height_px: int, **settings: object) -> tuple[int, int]:
    (placed,) = assign([record(width_px, height_px)], ImagesConfig(**settings))
    return placed.placement.bucket.width_px, placed.placement.bucket.height_px


@given(resolution=resolutions, step=steps)
def test_buckets_keep_to_step_limits_and_area(resolution: int, step: int) -> None:
    sizes = bucket_sizes(resolution, ImagesConfig(resolution=resolution, bucket_step=step))
    assert {Bucket(size.height_px, size.width_px) for size in sizes} == set(sizes), "every bucket has its upright twin"
    for size in sizes:
        assert size.width_px % step == size.height_px % step == 0
        assert max(size.width_px, size.height_px) <= resolution * 2
        assert size.width_px * size.height_px <= resolution**2
    square = resolution // step * step
    assert Bucket(square, square) in sizes


def test_usual_buckets_at_512() -> None:
    sizes = bucket_sizes(512, ImagesConfig())
    assert Bucket(512, 512) in sizes
    assert Bucket(768, 320) in sizes
    assert Bucket(256, 1024) in sizes
    assert min(size.width_px for size in sizes) == 256


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((3000, 3000), (512, 512)),
        ((1920, 1080), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((5000, 100), (1024, 256)),
    ],
)
def test_each_image_takes_the_nearest_aspect_ratio(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_of(*size) == bucket


def test_limits_are_honoured() -> None:
    assert bucket_of(5000, 100, bucket_max=768) == (768, 256)
    assert bucket_of(5000, 100, bucket_min=448) == (576, 448)


def test_without_buckets_everything_is_square() -> None:
    assert bucket_of(1920, 1080, buckets=False) == (512, 512)
    assert bucket_of(1920, 1080, buckets=False, resolution=200) == (200, 200)


@given(width=edges, height=edges, resolution=resolutions, step=steps, upscale=st.booleans(), buckets=st.booleans())
def test_every_image_of_any_size_gets_a_place_that_covers_its_bucket(
    width: int, height: int, resolution: int, step: int, upscale: bool, buckets: bool
) -> None:
    images = ImagesConfig(resolution=resolution, bucket_step=step, upscale=upscale, buckets=buckets)
    placement = place(width, height, bucket_sizes(resolution, images), images)
    bucket = placement.bucket
    assert min(placement.crop_room_px) >= 0
    assert min(placement.crop_room_px) <= 1, "one edge fits exactly, up to rounding"
    assert bucket.width_px % 8 == bucket.height_px % 8 == 0
    assert min(bucket.width_px, bucket.height_px) >= 8
    assert 0 < placement.kept_share <= 1
    assert placement.upscaled == (width < bucket.width_px or height < bucket.height_px)
    if not upscale:
        assert not placement.upscaled or min(width, height) < step


@given(width=edges, height=edges)
def test_the_chosen_bucket_crops_least(width: int, height: int) -> None:
    images = ImagesConfig()
    sizes = bucket_sizes(512, images)
    chosen = place(width, height, sizes, images)
    lone = ImagesConfig(upscale=True)

    def visible_share(placement: Placement) -> float:
        bucket, scale = placement.bucket, placement.scale
        return min(bucket.width_px / (width * scale), 1) * min(bucket.height_px / (height * scale), 1)

    best = max(visible_share(place(width, height, [size], lone)) for size in sizes)
    assert visible_share(chosen) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((300, 200), (256, 192)),
        ((512, 511), (512, 448)),
        ((130, 2000), (64, 1024)),
        ((30, 30), (64, 64)),
        ((1920, 1080), (640, 384)),
    ],
)
def test_without_upscaling_small_images_get_a_smaller_bucket(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_of(*size, upscale=False) == bucket


def test_without_upscaling_and_buckets_the_square_shrinks() -> None:
    assert bucket_of(300, 200, upscale=False, buckets=False) == (192, 192)


def test_several_resolutions_give_one_entry_each() -> None:
    placed = assign([record(600, 600), record(300, 600)], ImagesConfig(resolution=(512, 768)))
    assert [(item.record.width_px, item.resolution, item.placement.bucket.width_px) for item in placed] == [
        (600, 512, 512),
        (600, 768, 768),
        (300, 512, 320),
        (300, 768, 512),
    ]
    assert [item.placement.upscaled for item in placed] == [False, True, True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bucket_min": 640}, r"bucket_min \(640\) is larger than the resolution \(512\)"),
        ({"bucket_max": 256}, r"bucket_max \(256\) is smaller than the resolution \(512\)"),
        ({"resolution": (512, 1024), "bucket_max": 768}, r"bucket_max \(768\) is smaller than the resolution \(1024\)"),
        ({"bucket_step": 128, "resolution": 64}, r"bucket_step \(128\) is larger than the resolution \(64\)"),
        ({"bucket_min": 512, "bucket_max": 448}, r"bucket_min \(512\) is larger than bucket_max \(448\)"),
        ({"background": "white"}, r"background"),
    ],
)
def test_limits_that_leave_no_bucket_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImagesConfig(**settings)
