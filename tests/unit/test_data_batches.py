"""The order of an epoch, counter-based randomness, and the numbers of the summary."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdlora.config.images import ImagesConfig
from sdlora.data.batches import derive_seed, plan_epoch, sample_generator, sample_random
from sdlora.data.buckets import Bucket, BucketedImage, Placement, assign
from sdlora.data.images import ImageRecord, ScanResult, Skipped
from sdlora.data.planning import BucketCount, plan, tag_counts


def placed(bucket_width: int, repeats: int, name: str = "a.png") -> BucketedImage:
    record = ImageRecord(Path(name), 64, 64, "", "", repeats)
    return BucketedImage(record, 64, Placement(Bucket(bucket_width, 64), bucket_width, 64, 1.0))


placements = st.lists(st.builds(placed, st.sampled_from([64, 128, 192]), st.integers(1, 4)), min_size=1, max_size=20)


@given(items=placements, batch_size=st.integers(1, 7), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_every_image_comes_exactly_as_often_as_its_repeats_and_batches_share_a_bucket(
    items: list[BucketedImage], batch_size: int, seed: int, epoch: int
) -> None:
    batches = plan_epoch(items, batch_size, seed, epoch)
    counts = Counter(index for batch in batches for index in batch)
    assert counts == {index: item.record.repeats for index, item in enumerate(items)}
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    short = Counter()
    for batch in batches:
        (bucket,) = {items[index].placement.bucket for index in batch}
        short[bucket] += len(batch) < batch_size
    assert all(count <= 1 for count in short.values()), "at most one short batch a bucket"


def test_epochs_and_seeds_differ_and_repeat() -> None:
    items = [placed(64, 1) for _ in range(12)]
    first = plan_epoch(items, 2, seed=1, epoch=0)
    assert plan_epoch(items, 2, seed=1, epoch=0) == first
    assert plan_epoch(items, 2, seed=1, epoch=1) != first
    assert plan_epoch(items, 2, seed=2, epoch=0) != first


def test_seeds_are_fixed_for_ever() -> None:
    """A change here would make resumed runs differ: the first 8 bytes of SHA-256("7/noise/3/1")."""
    assert derive_seed(7, "noise", 3, 1) == 0x8768F5F9A9F7A242
    assert derive_seed(1, 23) != derive_seed(12, 3)


@pytest.mark.slow
def test_the_same_counters_draw_the_same_in_another_process() -> None:
    code = (
        "from sdlora.data.batches import sample_random; print([sample_random(7, 'crop', i).random() for i in range(5)])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str([sample_random(7, "crop", index).random() for index in range(5)])


def test_different_purposes_and_counters_draw_differently() -> None:
    keys = [(purpose, step, sample) for purpose in ("noise", "time") for step in range(20) for sample in range(5)]
    draws = {tuple(torch.randn(4, generator=sample_generator(3, *key)).tolist()) for key in keys}
    assert len(draws) == len(keys)
    pooled = torch.cat([torch.randn(64, generator=sample_generator(3, *key)) for key in keys])
    assert pooled.mean().item() == pytest.approx(0, abs=0.05)
    assert pooled.std().item() == pytest.approx(1, abs=0.05)


def test_the_summary_counts_what_training_will_draw(tmp_path: Path) -> None:
    records = [
        ImageRecord(tmp_path / "a.png", 512, 512, "red, hat", "", 3, has_alpha=True, mask="alpha"),
        ImageRecord(tmp_path / "b.png", 1024, 256, "red", "", 1, mask="alpha"),
        ImageRecord(tmp_path / "c.png", 100, 100, "blue\nred", "", 1, mask="alpha"),
    ]
    images = ImagesConfig(resolution=(256, 512), mask="alpha")
    scanned = ScanResult(records, [Skipped(tmp_path / "d.png", "damaged")], 4)
    numbers = plan(scanned, assign(records, images), batch_size=3)
    assert (numbers.images, numbers.files_seen, len(numbers.skipped), numbers.samples) == (3, 4, 1, 10)
    assert numbers.buckets == [
        BucketCount(Bucket(256, 256), 4),
        BucketCount(Bucket(512, 128), 1),
        BucketCount(Bucket(512, 512), 4),
        BucketCount(Bucket(1024, 256), 1),
    ]
    assert (numbers.batches, numbers.short_batches) == (6, 4)
    assert numbers.upscaled == 1
    assert numbers.never_trained == []
    assert numbers.mean_aspect_error == 0
    assert tag_counts(records) == {tmp_path.name: {"red": 3, "blue": 1, "hat": 1}}


def test_the_summary_of_a_cropped_image_says_how_far_its_shape_is_off() -> None:
    records = [ImageRecord(Path("a.png"), 200, 100, "", "", 2)]
    images = ImagesConfig(resolution=64, buckets=False)
    numbers = plan(ScanResult(records, [], 1), assign(records, images), batch_size=1)
    assert numbers.mean_aspect_error == pytest.approx(1.0)
