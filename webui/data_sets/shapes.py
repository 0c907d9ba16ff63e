"""What training makes of the images' shapes: the window cut from each, and how many share a bucket."""

from __future__ import annotations

import html
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from sdlora.config.images import ImagesConfig
from sdlora.data.buckets import Bucket, Placement, bucket_sizes, place
from sdlora.data.caption_files import repeats_folder
from sdlora.data.decoding import UnreadableImageError, open_image, oriented_size
from sdlora.data.images import THREADS
from webui.data_sets.listing import Item

RESOLUTIONS = (256, 320, 384, 512, 640, 768, 1024)
_BAR_PX = 26


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as it is shown, None for one that can't be read. Only the file's head is read."""
    try:
        return _size(path, path.stat().st_mtime_ns)
    except OSError:
        return None


def placement(size: tuple[int, int], resolution: int) -> Placement:
    """How an image of this size gets into its bucket."""
    images = ImagesConfig(resolution=resolution)
    return place(*size, bucket_sizes(resolution, images), images)


def cropped(item: Item, picture: Path, resolution: int) -> str:
    """HTML of an image with the part that training cuts off darkened, and the same in words.

    picture: a file that the page may load, with the whole image on it.
    """
    size = size_of(item.path)
    if size is None:
        return f'<p class="problems">{html.escape(item.name)} can\'t be read as an image.</p>'
    width, height = size
    placed = placement(size, resolution)
    left, top, window_width, window_height = _window(placed)
    words = describe(placed, size)
    alternative = html.escape(f"{item.name}: {item.caption or 'no caption'}", quote=True)
    outside = f"M0 0H{width}V{height}H0ZM{left} {top}V{top + window_height}H{left + window_width}V{top}Z"
    shape = f"aspect-ratio: {width} / {height}; max-width: calc(56vh * {width / height:.4f})"
    window = f'x="{left}" y="{top}" width="{window_width}" height="{window_height}"'
    return (
        f'<figure class="crop"><div class="frame" style="{shape}"><img src="{address(picture)}" alt="{alternative}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path fill-rule="evenodd" d="{outside}"/><rect {window}/></svg></div>'
        f"<figcaption>{html.escape(words)}</figcaption></figure>"
    )


def describe(placed: Placement, size: tuple[int, int]) -> str:
    """`800 x 600 px, trained as 576 x 448; 3 % cut off left and right.`"""
    bucket = placed.bucket
    lost = 1 - placed.kept_share
    room_x, room_y = placed.crop_room_px
    sides = " and ".join(name for name, room in (("left and right", room_x), ("top and bottom", room_y)) if room)
    cut = f"{max(1, round(100 * lost))} % cut off {sides}" if lost >= 0.005 else "nothing cut off"
    enlarged = f"; enlarged {placed.scale:.2g} times, so it is soft" if placed.scale > 1.005 else ""
    return f"{size[0]} × {size[1]} px, trained as {bucket.width_px} × {bucket.height_px}: {cut}{enlarged}."


def count_buckets(items: Sequence[Item], folder: Path, resolution: int) -> Counter[Bucket]:
    """How many images an epoch has in each bucket, repeats of `10_name` folders counted."""
    with ThreadPoolExecutor(THREADS) as threads:
        sizes = list(threads.map(lambda item: size_of(item.path), items))
    counts: Counter[Bucket] = Counter()
    for item, size in zip(items, sizes, strict=True):
        if size is not None:
            repeats, _ = repeats_folder(item.path.parent, folder) or (1, "")
            counts[placement(size, resolution).bucket] += repeats
    return counts


def chart(counts: Counter[Bucket]) -> str:
    """HTML: bars as inline SVG that a screen reader reads as a sentence, and the same figures as a table."""
    if not counts:
        return "<p>No readable images.</p>"
    ordered = sorted(counts.items(), key=lambda each: each[0].width_px / each[0].height_px)
    most = max(counts.values())
    bars = "".join(_bar(index, bucket, number, most) for index, (bucket, number) in enumerate(ordered))
    rows = "".join(
        f"<tr><th scope=row>{bucket.width_px} × {bucket.height_px}</th><td>{number}</td></tr>"
        for bucket, number in ordered
    )
    num_buckets = f"{len(counts)} bucket{'' if len(counts) == 1 else 's'}"
    label = f"{sum(counts.values())} images an epoch in {num_buckets}, {most} in the largest"
    size = f'viewBox="0 0 600 {len(ordered) * _BAR_PX + 4}"'
    return (
        f'<svg class="buckets" role="img" aria-label="{label}" {size}>{bars}</svg>'
        f"<p>{label}. A batch holds images of one bucket only.</p><details><summary>As a table</summary>"
        "<table><thead><tr><th scope=col>Bucket</th><th scope=col>Images</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details>"
    )


def address(path: Path) -> str:
    """Where the page loads a served file from, relative to the page."""
    return f"gradio_api/file={urllib.parse.quote(str(path))}"


@lru_cache(maxsize=20_000)
def _size(path: Path, modified_ns: int) -> tuple[int, int] | None:
    try:
        with open_image(path) as image:
            return oriented_size(image)
    except UnreadableImageError:
        return None


def _window(placed: Placement) -> tuple[int, int, int, int]:
    """Left, top, width and height of the trained window on the original image."""
    room_x, room_y = placed.crop_room_px
    lengths = (room_x // 2, room_y // 2, placed.bucket.width_px, placed.bucket.height_px)
    left, top, width, height = (round(length / placed.scale) for length in lengths)
    return left, top, width, height


def _bar(index: int, bucket: Bucket, number: int, most: int) -> str:
    y = index * _BAR_PX + 2
    width = max(2, round(400 * number / most))
    return (
        f'<text x="92" y="{y + 16}" text-anchor="end">{bucket.width_px} × {bucket.height_px}</text>'
        f'<rect x="100" y="{y + 3}" width="{width}" height="{_BAR_PX - 8}" rx="3"/>'
        f'<text x="{108 + width}" y="{y + 16}">{number}</text>'
    )
