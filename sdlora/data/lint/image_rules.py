"""Findings about single images: files, sizes, brightness, sharpness."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sdlora.config.images import ImagesConfig
from sdlora.data.buckets import BucketedImage, assign
from sdlora.data.decoding import UNREAD_SUFFIXES
from sdlora.data.lint.findings import Finding
from sdlora.data.lint.samples import Dataset, Sample
from sdlora.data.scan_problems import without_mask
from sdlora.data.unread import mask_sentence

_ENLARGED = 1.05
"""Enlargements below this are invisible."""
_ASPECT = 3.0
_KEPT_SHARE = 0.6
_HUGE_MEGAPIXELS = 25.0
_DARK, _BRIGHT = 24, 231
_BLURRED = 0.07
"""Sharpness below which an image shows no edge at its trained size; a blur of 3 px gives up to 0.12."""
_JPEG_QUALITY = 50
_BLOCKINESS = 2.0


def image_findings(data: Dataset, images: ImagesConfig) -> Iterator[Finding]:
    """One finding for each rule that images break."""
    for path, reason in data.broken.items():
        unread = path.suffix.lower() in UNREAD_SUFFIXES
        yield Finding("unread-format" if unread else "unreadable", reason, (path,))
    if data.zero_repeats:
        yield Finding(
            "zero-repeats",
            "the folder's name asks for 0 repeats, so the run would be refused: rename the folder or move it out",
            tuple(data.zero_repeats),
        )
    for note in data.notes:
        yield Finding("read-otherwise", note)
    for rule, sentence, files in data.masks.oddities():
        yield Finding(rule, sentence, files)
    yield from _missing_masks(data)
    if data.misnamed_masks:
        message = f"{mask_sentence(data.misnamed_masks)}; as it is, each is trained as an image"
        yield Finding("misnamed-mask", message, tuple(data.misnamed_masks))
    yield from _sizes(data, images)
    yield from _looks(data, images)


def _missing_masks(data: Dataset) -> Iterator[Finding]:
    for kind in ("file", "alpha"):
        asked = [record for record in data.records if record.mask == kind and not record.is_class]
        without = tuple(record.path for record in asked if not record.has_mask)
        if 0 < len(without) < len(asked):
            yield Finding("mask-missing", without_mask(len(without), kind), without)


def _sizes(data: Dataset, images: ImagesConfig) -> Iterator[Finding]:
    placed = assign(data.records, images)
    enlarged = [item for item in placed if item.placement.scale > _ENLARGED]
    enlarged.sort(key=lambda item: item.placement.scale)
    for item in {item.record.path: item for item in enlarged}.values():  # of several resolutions the worst
        factor = item.placement.scale
        yield Finding(
            "upscaled",
            f"{item.record.width_px}x{item.record.height_px} px would be enlarged {factor:.2g} times for resolution "
            f"{item.resolution}: find a larger copy, or leave it out",
            (item.record.path,),
            {"scale": round(factor, 3)},
        )
    extreme = [item for item in placed if _aspect(item) > _ASPECT or item.placement.kept_share < _KEPT_SHARE]
    for item in {item.record.path: item for item in extreme}.values():
        kept = item.placement.kept_share
        yield Finding(
            "extreme-aspect",
            f"{item.record.width_px}x{item.record.height_px} px ({_aspect(item):.2g} to 1) keeps {kept:.0%} of its "
            f"area in bucket {item.placement.bucket.width_px}x{item.placement.bucket.height_px}: crop it by hand",
            (item.record.path,),
            {"aspect": round(_aspect(item), 3), "kept_share": round(kept, 3)},
        )
    huge = [record for record in data.records if record.width_px * record.height_px > _HUGE_MEGAPIXELS * 1e6]
    if huge:
        most = max(record.width_px * record.height_px for record in huge) / 1e6
        yield Finding(
            "huge",
            f"more than {_HUGE_MEGAPIXELS:.0f} megapixels (up to {most:.0f}): slow to read, no better for training",
            tuple(record.path for record in huge),
            {"megapixels": round(most, 1)},
        )


def _aspect(item: BucketedImage) -> float:
    width, height = item.record.width_px, item.record.height_px
    return max(width, height) / min(width, height)


def _looks(data: Dataset, images: ImagesConfig) -> Iterator[Finding]:
    def where(condition: Callable[[Sample], bool]) -> tuple[Path, ...]:
        return tuple(sample.record.path for sample in data.samples if condition(sample))

    # Black and white sheets are without colour too, but have a finding of their own.
    grey = where(lambda sample: sample.measures.grey and not _is_blank(sample))
    transparent = where(lambda sample: sample.measures.transparent) if images.mask != "alpha" else ()
    found: dict[str, tuple[str, tuple[Path, ...]]] = {
        "animated": ("only the first frame is trained", where(lambda sample: sample.measures.animated)),
        "exif-rotated": (
            "turned by EXIF data: sdlora shows it upright, not every tool does",
            where(lambda sample: sample.measures.exif_rotated),
        ),
        "alpha": (f"transparent parts are trained as {images.background} (images.background)", transparent),
        "grey": (
            "without colour among coloured images: the adapter may learn to leave colour out",
            # Where most images are grey, grey is meant.
            grey if 2 * len(grey) < len(data.samples) else (),
        ),
        "near-black": ("almost black", where(lambda sample: sample.measures.brightest < _DARK)),
        "near-white": ("almost white", where(lambda sample: sample.measures.darkest > _BRIGHT)),
    }
    for rule, (message, files) in found.items():
        if files:
            yield Finding(rule, message, files)
    for sample in data.samples:
        yield from _quality(sample)


def _is_blank(sample: Sample) -> bool:
    return sample.measures.brightest < _DARK or sample.measures.darkest > _BRIGHT


def _quality(sample: Sample) -> Iterator[Finding]:
    measures, files = sample.measures, (sample.record.path,)
    if measures.sharpness < _BLURRED and not _is_blank(sample):
        yield Finding(
            "blurred",
            f"no sharp edge at the trained size (sharpness {measures.sharpness:.2f}; below {_BLURRED} is blurred)",
            files,
            {"sharpness": round(measures.sharpness, 3)},
        )
    if measures.jpeg_quality is not None and measures.jpeg_quality < _JPEG_QUALITY:
        yield Finding(
            "jpeg-artefacts",
            f"saved at JPEG quality {measures.jpeg_quality:.0f}: its artefacts are learned too; find a better copy",
            files,
            {"jpeg_quality": round(measures.jpeg_quality)},
        )
    # JPEG quality is known only of JPEG files; blocks betray one that was saved as a PNG later.
    elif measures.blockiness > _BLOCKINESS:
        yield Finding(
            "jpeg-artefacts",
            f"8x8 blocks of an earlier JPEG show (steps {measures.blockiness:.1f} times as high across their borders)",
            files,
            {"blockiness": round(measures.blockiness, 2)},
        )
