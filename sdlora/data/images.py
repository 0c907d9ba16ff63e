"""The usable images of a folder, with captions, repeats and masks; and what was skipped, and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sdlora.config.images import CaptionsConfig, ImagesConfig, MaskSource
from sdlora.data.cache import default_cache_folder
from sdlora.data.caption_files import CaptionFolders, repeats_folder
from sdlora.data.decoding import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    UnreadableImageError,
    load_alpha,
    load_grey,
    open_image,
    oriented_size,
)
from sdlora.data.inspection import ImageFacts, open_memory, recall
from sdlora.data.scan_problems import (
    refuse_absent_masks,
    refuse_caption_problems,
    refuse_empty_folder,
    refuse_missing_folders,
    refuse_unreadable,
    refuse_zero_repeats,
)

MASK_ENDING = "-masklabel"
THREADS = min(8, os.cpu_count() or 1)
"""Threads that decode images; Pillow lets go of the interpreter while it does."""


@dataclass(frozen=True)
class ImageRecord:
    """One training image. Width and height are those after its EXIF orientation."""

    path: Path
    width_px: int
    height_px: int
    caption: str | None
    content_hash: str
    """SHA-256 of the file's bytes, in hex."""
    repeats: int
    """How often the image is seen in an epoch, at least 1."""
    mask_path: Path | None = None
    """The `name-masklabel` file beside it, when images.mask is `file`."""
    is_class: bool = False
    """A class image for prior preservation."""
    has_alpha: bool = False

    def has_mask(self, source: MaskSource) -> bool:
        """Whether `load_mask` finds more than an empty sheet."""
        return {"none": False, "alpha": self.has_alpha, "file": self.mask_path is not None}[source]


@dataclass(frozen=True)
class Skipped:
    """A file that is not trained, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ScanResult:
    """The usable images of a scan, and why the other files are none."""

    records: list[ImageRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    files_seen: int = 0
    """Image files met, used or skipped; masks, captions and hidden files don't count."""


def scan(
    images: ImagesConfig,
    captions: CaptionsConfig,
    *,
    folders: Sequence[Path] | None = None,
    is_class: bool = False,
) -> ScanResult:
    """All usable images of the folders and their subfolders, in the order of their names.

    folders: by default `images.folders`. is_class marks the records as class images.
    Raises DataError for a missing or empty folder, for more unreadable files than `images.max_unreadable` allows, for
    images without a caption and for masks that can't be found; each message names all files concerned.
    """
    roots = [root.expanduser().absolute() for root in (images.folders if folders is None else folders)]
    refuse_missing_folders(roots)
    found = _Finds()
    for root in roots:
        _scan_folder(root, images, captions, is_class, found)
    files_seen = len(found.records) + len(found.skipped)
    reasons = {_name(item.path, roots): item.reason for item in found.skipped}
    refuse_unreadable(reasons, files_seen, images.max_unreadable)
    uncaptioned = {_name(path, roots): path for path in found.uncaptioned}
    refuse_caption_problems(uncaptioned, found.caption_problems, len(found.records), captions)
    if images.mask != "none" and not is_class and not any(record.has_mask(images.mask) for record in found.records):
        refuse_absent_masks(len(found.records), images.mask)
    return ScanResult(found.records, found.skipped, files_seen)


@dataclass(frozen=True)
class Listing:
    """The files of an image folder and its subfolders, by name, without hidden ones."""

    files: list[Path]
    pictures: list[Path]
    """Files that should be images by their ending, masks left out."""
    masks: dict[Path, Path]
    """Mask files by their path without ending."""

    def mask_of(self, picture: Path) -> Path | None:
        """The `name-masklabel` file beside a picture."""
        return self.masks.get(picture.with_name(picture.stem + MASK_ENDING))


def list_folder(root: Path) -> Listing:
    """The pictures and masks below a folder, unopened. Raises DataError when there is no picture."""
    files = list(_files_below(root, set()))
    candidates = [path for path in files if path.suffix.lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)]
    masks = {path.with_suffix(""): path for path in candidates if path.stem.endswith(MASK_ENDING)}
    pictures = [path for path in candidates if path.with_suffix("") not in masks]
    if not pictures:
        refuse_empty_folder(root, files)
    return Listing(files, pictures, masks)


def load_mask(record: ImageRecord, source: MaskSource, size: tuple[int, int]) -> Image.Image:
    """The loss mask in mode L (white is trained), upright, at `size` (width, height); white when there is none.

    Raises decoding.UnreadableImageError.
    """
    mask = None
    if source == "alpha" and record.has_alpha:
        mask = load_alpha(record.path)
    elif source == "file" and record.mask_path is not None:
        mask = load_grey(record.mask_path)
    if mask is None:
        return Image.new("L", size, 255)
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


@dataclass
class _Finds:
    records: list[ImageRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    uncaptioned: list[Path] = field(default_factory=list)
    caption_problems: list[str] = field(default_factory=list)
    real_paths: set[Path] = field(default_factory=set)
    """Files met so far with links resolved: overlapping folders give each image once."""


def _scan_folder(root: Path, images: ImagesConfig, captions: CaptionsConfig, is_class: bool, found: _Finds) -> None:
    listing = list_folder(root)
    pictures = [path for path in listing.pictures if path.resolve() not in found.real_paths]
    found.real_paths.update(path.resolve() for path in pictures)

    sources = CaptionFolders(root)
    for path, facts in inspect_all(pictures, root, images):
        mask_path = listing.mask_of(path) if images.mask == "file" else None
        reason = facts if isinstance(facts, str) else mask_problem(mask_path, images.max_megapixels)
        if isinstance(facts, str) or reason:
            found.skipped.append(Skipped(path, str(reason)))
            continue
        caption = sources.caption(path)
        if caption is None and captions.default is None:
            found.uncaptioned.append(path)
        repeats, _ = repeats_folder(path.parent, root) or (images.repeats, "")
        if repeats == 0:
            refuse_zero_repeats(path.parent)
        found.records.append(
            ImageRecord(
                path=path,
                width_px=facts.width_px,
                height_px=facts.height_px,
                caption=captions.default if caption is None else caption,
                content_hash=facts.content_hash,
                repeats=repeats,
                mask_path=mask_path,
                is_class=is_class,
                has_alpha=facts.has_alpha,
            )
        )
    found.caption_problems += sources.problems


def _name(path: Path, roots: Sequence[Path]) -> str:
    """The path as messages show it: below its image folder, with that folder's name when there are several."""
    root = next(root for root in roots if path.is_relative_to(root))
    return path.relative_to(root if len(roots) == 1 else root.parent).as_posix()


def _files_below(folder: Path, visited: set[Path]) -> Iterator[Path]:
    """Files in a folder and its subfolders, by name; hidden ones are left out, links are followed once."""
    real = folder.resolve()
    if real in visited:
        return
    visited.add(real)
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.is_dir():
            yield from _files_below(path, visited)
        elif path.is_file():
            yield path


def inspect_all(
    paths: Sequence[Path], root: Path, images: ImagesConfig, on_each: Callable[[], None] = lambda: None
) -> list[tuple[Path, ImageFacts | str]]:
    """Each path with its facts, or with the reason why it can't be read; `on_each` is called after each."""
    cache_folder = (images.cache_folder or default_cache_folder()) if images.cache else None
    memory = open_memory(root, cache_folder)

    def inspect_one(path: Path) -> ImageFacts | str:
        suffix = path.suffix.lower()
        if suffix in UNREAD_SUFFIXES:
            return f"{suffix} files are not read: save it as PNG or JPEG"
        try:
            return recall(memory, path, images.max_megapixels)
        except UnreadableImageError as error:
            return str(error)
        except OSError as error:
            return f"can't be opened ({error.strerror or error})"

    found: list[tuple[Path, ImageFacts | str]] = []
    # Threads suffice: Pillow lets go of the interpreter while it decodes.
    with ThreadPoolExecutor(THREADS) as threads:
        for path, facts in zip(paths, threads.map(inspect_one, paths), strict=True):
            found.append((path, facts))
            on_each()
    memory.save()
    return found


def mask_problem(mask_path: Path | None, max_megapixels: float) -> str | None:
    """Why a mask can't be used, if so."""
    if mask_path is None:
        return None
    try:
        with open_image(mask_path, max_megapixels) as mask:
            oriented_size(mask)
            mask.load()
    except UnreadableImageError as error:
        return f"its mask {mask_path.name} can't be read: {error}"
    return None
