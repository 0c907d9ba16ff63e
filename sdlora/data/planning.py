"""What a run will do with its images, in numbers: for the summary before a run and for the file's metadata."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.config.images import CaptionsConfig
from sdlora.data.batches import plan_epoch
from sdlora.data.buckets import Bucket, BucketedImage
from sdlora.data.captions import render, split_tags, without_chance
from sdlora.data.images import ImageRecord, ScanResult, Skipped


@dataclass(frozen=True)
class BucketCount:
    """A bucket and how many samples of an epoch are in it, repeats counted."""

    bucket: Bucket
    samples: int


@dataclass(frozen=True)
class DataPlan:
    """What one epoch trains, counted: images, samples, batches and buckets."""

    images: int
    """Different images (files); each counts once, whatever its repeats and resolutions."""
    files_seen: int
    skipped: list[Skipped]
    samples: int
    """Images in an epoch, repeats and resolutions counted."""
    buckets: list[BucketCount]
    batches: int
    short_batches: int
    upscaled: int
    """Images that are enlarged for at least one resolution."""
    never_trained: list[Path]
    """Images in no batch of an epoch: always empty, and counted from the real batches to prove it."""
    mean_aspect_error: float
    """Mean of |image aspect - bucket aspect| (width over height), over samples."""


def plan(scan: ScanResult, placed: Sequence[BucketedImage], batch_size: int) -> DataPlan:
    """The numbers of one epoch, taken from the batches that training would generate."""
    # Any seed will do: it decides the order, and no number here depends on that.
    batches = plan_epoch(placed, batch_size, seed=0, epoch=0)
    trained = Counter(placed[index].record.path for batch in batches for index in batch)
    buckets = Counter(placed[index].placement.bucket for batch in batches for index in batch)
    samples = sum(buckets.values())
    errors = sum(item.record.repeats * _aspect_error(item) for item in placed)
    return DataPlan(
        images=len(scan.records),
        files_seen=scan.files_seen,
        skipped=list(scan.skipped),
        samples=samples,
        buckets=[BucketCount(bucket, count) for bucket, count in sorted(buckets.items())],
        batches=len(batches),
        short_batches=sum(len(batch) < batch_size for batch in batches),
        upscaled=len({item.record.path for item in placed if item.placement.upscaled}),
        never_trained=[record.path for record in scan.records if not trained[record.path]],
        mean_aspect_error=errors / samples if samples else 0.0,
    )


def tag_counts(records: Sequence[ImageRecord]) -> dict[str, dict[str, int]]:
    """How many captions of each folder (by its name) are trained with each tag, most frequent first.

    Trigger, prefix and suffix count, as other tools offer these tags as words to prompt with; class images don't, nor
    what dropout always leaves out.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        if record.is_class:
            continue
        captions = [record.caption or "", *(text for text, _ in record.alternatives)]
        texts = [line for text in captions for line in text.splitlines()] if record.captions.wildcards else captions
        trained = [render(text, _without_doubt(record.captions), random.Random(0)) for text in texts]
        counts[record.path.parent.name].update({tag for text in trained for tag in split_tags(text, record.captions)})
    return {folder: dict(sorted(tags.items(), key=_frequent_first)) for folder, tags in counts.items()}


def triggers(records: Sequence[ImageRecord]) -> list[str]:
    """The trigger words that are trained, each once: the run's, or those of its folders. Class images have none."""
    return list(dict.fromkeys(trigger for one in records if not one.is_class and (trigger := one.captions.trigger)))


def _without_doubt(captions: CaptionsConfig) -> CaptionsConfig:
    """Settings under which a caption keeps all that is ever trained of it: only dropout of everything drops."""
    always = {name: 1.0 for name in ("dropout", "tag_dropout") if getattr(captions, name) == 1}
    return without_chance(captions).model_copy(update=always)


def _frequent_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _aspect_error(item: BucketedImage) -> float:
    image = item.record.width_px / item.record.height_px
    return abs(image - item.placement.bucket.width_px / item.placement.bucket.height_px)
