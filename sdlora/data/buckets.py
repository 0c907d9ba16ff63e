"""Aspect-ratio buckets: the size each image is resized and cropped to. Pure arithmetic; no image is ever left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdlora.config.images import ImagesConfig
from sdlora.data.images import ImageRecord


@dataclass(frozen=True, order=True)
class Bucket:
    """The size in pixels that all images of a batch are brought to; ordered by width, then height."""

    width_px: int
    height_px: int


@dataclass(frozen=True)
class Placement:
    """How an image gets into its bucket: resized to `resized_*`, which cover the bucket, then cropped."""

    bucket: Bucket
    resized_width_px: int
    resized_height_px: int
    scale: float
    """Resized edge over original edge; above 1 the image is enlarged."""

    @property
    def upscaled(self) -> bool:
        """Whether the image is smaller than its bucket, so that it is enlarged."""
        return self.scale > 1

    @property
    def crop_room_px(self) -> tuple[int, int]:
        """How far the window can move to the right and down."""
        return self.resized_width_px - self.bucket.width_px, self.resized_height_px - self.bucket.height_px

    @property
    def kept_share(self) -> float:
        """Share of the image's area that the window shows."""
        bucket_area = self.bucket.width_px * self.bucket.height_px
        return bucket_area / (self.resized_width_px * self.resized_height_px)


@dataclass(frozen=True)
class BucketedImage:
    """An image at one of the target resolutions."""

    record: ImageRecord
    resolution: int
    placement: Placement


def assign(records: Sequence[ImageRecord], images: ImagesConfig) -> list[BucketedImage]:
    """Every record at every target resolution, in that order, each in the bucket that crops it least."""
    wanted = {resolution for record in records for resolution in record.resolutions or images.resolutions}
    sizes = {resolution: bucket_sizes(resolution, images) for resolution in wanted}
    return [
        BucketedImage(record, resolution, place(record.width_px, record.height_px, sizes[resolution], images))
        for record in records
        for resolution in record.resolutions or images.resolutions
    ]


def bucket_sizes(resolution: int, images: ImagesConfig) -> list[Bucket]:
    """The buckets of one resolution, widest last; without `images.buckets` one square.

    Edges are multiples of `bucket_step` between `bucket_min` (default: half the resolution) and `bucket_max` (default:
    twice). The area is as near to resolution squared as it gets without passing it, so that no bucket needs more
    memory than the square, which is always among them.
    """
    if not images.buckets:
        return [Bucket(resolution, resolution)]
    step = images.bucket_step
    shortest = -(-(images.bucket_min or resolution // 2) // step) * step
    longest = _round_down(images.bucket_max or resolution * 2, step)
    sizes = set()
    for edge in range(shortest, longest + 1, step):
        other = min(_round_down(resolution * resolution // edge, step), longest)
        if other >= shortest:
            sizes |= {Bucket(edge, other), Bucket(other, edge)}
    square = max(_round_down(resolution, step), step)
    return sorted(sizes | {Bucket(square, square)})


def place(width_px: int, height_px: int, sizes: Sequence[Bucket], images: ImagesConfig) -> Placement:
    """The placement that crops an image of this size least; without `images.upscale`, in a smaller bucket if needed."""
    # Of the buckets that crop alike the largest, which shrinks the image least.
    fitting = max(sizes, key=lambda size: (_kept_share(width_px, height_px, size), size.width_px * size.height_px))
    placement = _cover(width_px, height_px, fitting)
    if images.upscale or not placement.upscaled:
        return placement
    return _cover(width_px, height_px, _smaller_bucket(width_px, height_px, sizes, images))


def _kept_share(width_px: int, height_px: int, size: Bucket) -> float:
    image, bucket = width_px * size.height_px, height_px * size.width_px
    return min(image, bucket) / max(image, bucket)


def _cover(width_px: int, height_px: int, bucket: Bucket) -> Placement:
    scale = max(bucket.width_px / width_px, bucket.height_px / height_px)
    return Placement(
        bucket=bucket,
        # At least the bucket's edge: rounding may come out a pixel short.
        resized_width_px=max(bucket.width_px, round(width_px * scale)),
        resized_height_px=max(bucket.height_px, round(height_px * scale)),
        scale=scale,
    )


def _smaller_bucket(width_px: int, height_px: int, sizes: Sequence[Bucket], images: ImagesConfig) -> Bucket:
    """The image's own size rounded down to steps, within the largest area and edge of the usual buckets.

    An edge shorter than one step is the only thing still enlarged.
    """
    area = max(size.width_px * size.height_px for size in sizes)
    longest = max(max(size.width_px, size.height_px) for size in sizes)
    scale = min(1.0, math.sqrt(area / (width_px * height_px)), longest / width_px, longest / height_px)
    step = images.bucket_step
    width, height = (max(step, _round_down(int(edge * scale), step)) for edge in (width_px, height_px))
    if not images.buckets:
        width = height = min(width, height)
    return Bucket(width, height)


def _round_down(value: int, step: int) -> int:
    return value // step * step
