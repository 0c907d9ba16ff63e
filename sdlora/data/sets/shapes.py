"""What training makes of the images' shapes: the window cut from each, and how many share a bucket."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.config.images import ImagesConfig
from sdlora.data.buckets import Bucket, Placement, bucket_sizes, place
from sdlora.data.caption_files import repeats_folder
from sdlora.data.decoding import UnreadableImageError, open_image, oriented_size
from sdlora.data.folder_listing import settled_stamp
from sdlora.data.sets.listing import read
from sdlora.file_memory import Stamp, stamp

BucketCounts = Counter[Bucket]
"""Images by bucket."""


@dataclass(frozen=True)
class Window:
    """The part of an image that is trained, in pixels of the original."""

    left: int
    top: int
    width: int
    height: int


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as it is shown, None for one that can't be read. Only the file's head is read."""
    try:
        return _size(path, stamp(path.stat()))
    except OSError:
        return None


@lru_cache(maxsize=5_000)  # thousands of pictures share a few sizes
def placement(size: tuple[int, int], resolution: int) -> Placement:
    """How an image of this size gets into its bucket."""
    images = ImagesConfig(resolution=resolution)
    return place(*size, bucket_sizes(resolution, images), images)


def window_of(placed: Placement) -> Window:
    """The trained window on the original image, its crop in the middle."""
    room_x, room_y = placed.crop_room_px
    lengths = (room_x // 2, room_y // 2, placed.bucket.width_px, placed.bucket.height_px)
    return Window(*(round(length / placed.scale) for length in lengths))


def crop_in_words(placed: Placement, size: tuple[int, int]) -> str:
    """`800 x 600 px, trained as 576 x 448; 3 % cut off left and right.`"""
    bucket = placed.bucket
    lost = 1 - placed.kept_share
    room_x, room_y = placed.crop_room_px
    sides = " and ".join(name for name, room in (("left and right", room_x), ("top and bottom", room_y)) if room)
    cut = f"{max(1, round(100 * lost))} % cut off {sides}" if lost >= 0.005 else "nothing cut off"
    enlarged = f"; enlarged {placed.scale:.2g} times, so it is soft" if placed.scale > 1.005 else ""
    return f"{size[0]} × {size[1]} px, trained as {bucket.width_px} × {bucket.height_px}: {cut}{enlarged}."


def count_buckets(folder: Path, resolution: int) -> BucketCounts:
    """How many images of a dataset an epoch has in each bucket, repeats of `10_name` folders counted."""
    return _count_buckets(folder, resolution, settled_stamp(folder))


@lru_cache(maxsize=64)
def _count_buckets(folder: Path, resolution: int, _stamp: int) -> BucketCounts:
    items = read(folder)
    sizes = [size_of(item.path) for item in items]  # in threads these short reads take twice as long
    repeats = {inner: repeats_folder(inner, folder) or (1, "") for inner in {item.path.parent for item in items}}
    counts: BucketCounts = Counter()
    for item, size in zip(items, sizes, strict=True):
        if size is not None:
            counts[placement(size, resolution).bucket] += repeats[item.path.parent][0]
    return counts


@lru_cache(maxsize=20_000)
def _size(path: Path, _stamp: Stamp) -> tuple[int, int] | None:
    try:
        with open_image(path) as image:
            return oriented_size(image)
    except UnreadableImageError:
        return None
