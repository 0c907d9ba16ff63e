"""The usable images of a folder, with captions, repeats and masks; and what was skipped, and why."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sdlora.config.images import CaptionsConfig, CropFocus, ImagesConfig, MaskSource
from sdlora.data.cache import default_cache_folder
from sdlora.data.caption_files import CaptionFolders, CaptionSource, long_number, repeats_folder
from sdlora.data.captions import render, variants, without_chance, without_trigger
from sdlora.data.decoding import (
    UNREAD_SUFFIXES,
    UnreadableImageError,
    load_alpha,
    load_grey,
    why_unread,
)
from sdlora.data.folder_listing import MASK_ENDING, Listing, list_folder
from sdlora.data.image_sources import Source, inner_folders, sources_of
from sdlora.data.inspection import ImageFacts, hash_file, open_memory, recall
from sdlora.data.mask_files import Masks
from sdlora.data.scan_problems import (
    Gathered,
    class_images_are_trained,
    refuse_absent_masks,
    refuse_caption_problems,
    refuse_missing_folders,
    refuse_unreadable,
    refuse_zero_repeats,
    without_mask,
)
from sdlora.data.unread import (
    look_beside,
    mask_sentence,
    misnamed_masks,
    orphan_captions,
    some,
    unused,
)
from sdlora.errors import DataError
from sdlora.words import count

STAND_INS: dict[CaptionSource | None, str] = {
    "folder": "the folder's name",
    "metadata": "the metadata file's caption",
    None: "captions.default",
}
"""What is trained where an image has no caption file, by where its caption was found."""
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
    mask_hash: str = ""
    """SHA-256 of the mask file's bytes, or empty."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """Other captions of the image, each with its chance to be trained instead."""
    # Without a hash, as it holds dictionaries; path and content tell records apart well enough.
    captions: CaptionsConfig = field(default=CaptionsConfig(), hash=False)
    """How its captions are trained: the run's settings with its folder's own."""
    resolutions: tuple[int, ...] = ()
    """Its folder's own target resolutions; empty for the run's."""
    horizontal_flip: bool = False
    mask: MaskSource = "none"
    crop_focus: CropFocus = "centre"
    loss_weight: float = 1.0
    """Factor on the image's loss: its folder's times its own."""
    source: int = 0
    """The place of its folder among all."""
    follows_repeats: bool = True
    """Whether images.repeats gives its repeats, and not its folder's name or images.folders."""
    caption_from: CaptionSource | None = None
    """Where its caption was found; None where there is none but captions.default."""

    @property
    def has_mask(self) -> bool:
        """Whether `load_mask` finds more than an empty sheet."""
        return {"none": False, "alpha": self.has_alpha, "file": self.mask_path is not None}[self.mask]

    def trained_caption(self, generator: random.Random) -> str:
        """The caption as trained this time; what is drawn by chance comes from `generator`."""
        text = self.caption or ""
        if self.alternatives:
            # One draw decides among all captions: each other one takes its share of [0, 1), the image's own the rest.
            chance = generator.random()
            for other, share in self.alternatives:
                if chance < share:
                    text = other
                    break
                chance -= share
        return render(text, self.captions, generator)

    def plain_caption(self) -> str:
        """The caption on the whole: with trigger, prefix and suffix, nothing dropped, shuffled or picked by chance."""
        return render(self.caption or "", without_chance(self.captions), random.Random(0))

    def prior_caption(self) -> str:
        """The caption of the whole class: as `plain_caption`, but without the trigger."""
        bare = self.captions.model_copy(update={"trigger": None})
        return without_trigger(render(self.caption or "", without_chance(bare), random.Random(0)), self.captions)

    def trained_captions(self) -> list[str] | None:
        """Every text the image can be trained with, without repetition; None when there may be too many."""
        forms = [
            variants(text, self.captions) for text in (self.caption or "", *(text for text, _ in self.alternatives))
        ]
        if any(each is None for each in forms):
            return None
        return list(dict.fromkeys(text for each in forms for text in each or ()))


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
    left_out: list[Skipped] = field(default_factory=list)
    """Everything else in the folders that is not read: hidden and system files, broken links, unknown kinds."""
    notes: list[str] = field(default_factory=list)
    """What was read otherwise than a person may think."""
    warnings: list[str] = field(default_factory=list)
    """The same where it most likely spoils the result."""


def scan(
    images: ImagesConfig,
    captions: CaptionsConfig,
    *,
    folders: Sequence[Path] | None = None,
    is_class: bool = False,
) -> ScanResult:
    """All usable images of the folders and their subfolders, in the order of their names.

    folders: by default the configured ones. is_class marks their records as class images.
    Raises DataError for a missing or empty folder, for more unreadable files than `images.max_unreadable` allows, for
    images without a caption and for masks that can't be found; the message lists all of that, each with its files.
    """
    sources = sources_of(images, captions, folders, is_class=is_class)
    roots = [source.folder for source in sources]
    problems, found = Gathered(), _Finds()
    with problems.go_on():
        refuse_missing_folders(roots)
    with problems.go_on():
        _refuse_two_purposes(sources)
    for source in sources:
        with problems.go_on():
            if source.folder.is_dir():
                _scan_folder(source, inner_folders(source.folder, roots), found)
    files_seen = len(found.records) + len(found.skipped)
    reasons = {_name(item.path, roots): item.reason for item in found.skipped}
    with problems.go_on():
        refuse_unreadable(reasons, files_seen, images.max_unreadable)
    uncaptioned = [_name(path, roots) for path in found.uncaptioned]
    with problems.go_on():
        refuse_caption_problems(uncaptioned, found.caption_problems, len(found.records), captions, found.hints)
    for folder in dict.fromkeys(record.path.parent for record in found.records if record.repeats == 0):
        with problems.go_on():
            refuse_zero_repeats(folder)
    masked: dict[MaskSource, list[ImageRecord]] = defaultdict(list)
    for record in found.records:
        if record.mask != "none" and not record.is_class:
            masked[record.mask].append(record)
    for kind, records in masked.items():
        if not any(record.has_mask for record in records):
            with problems.go_on():
                refuse_absent_masks(len(records), kind, found.mask_hints)
        elif without := [record.path for record in records if not record.has_mask]:
            found.warnings.append(f"{without_mask(len(without), kind)}: {some(without)}")
    problems.refuse()
    return ScanResult(found.records, found.skipped, files_seen, found.left_out, found.notes, found.warnings)


def load_mask(record: ImageRecord, size: tuple[int, int]) -> Image.Image:
    """The loss mask in mode L (white is trained), upright, at `size` (width, height); white when there is none.

    Raises decoding.UnreadableImageError.
    """
    mask = None
    if record.mask == "alpha" and record.has_alpha:
        mask = load_alpha(record.path)
    elif record.mask == "file" and record.mask_path is not None:
        mask = load_grey(record.mask_path)
    if mask is None:
        return Image.new("L", size, 255)
    # A mask of another size is taken to show the whole picture too, as tools that make masks often scale it.
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


@dataclass
class _Finds:
    records: list[ImageRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    uncaptioned: list[Path] = field(default_factory=list)
    caption_problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    """Sentences about what may be meant as the captions of `uncaptioned`."""
    mask_hints: list[str] = field(default_factory=list)
    left_out: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sources: dict[Path, list[Source]] = field(default_factory=lambda: defaultdict(list))
    """By files met so far, with links resolved, the folders in which they are."""

    def is_new(self, path: Path, source: Source) -> bool:
        """Whether an image is met there first: folders that share it give it once, unless they train it otherwise."""
        others = self.sources[path.resolve()]
        is_new = all(other.folder == source.folder or not other.trains_like(source) for other in others)
        others.append(source)
        return is_new


def _refuse_two_purposes(sources: Sequence[Source]) -> None:
    """Raise DataError for a folder that is named both for training and for class images."""
    purposes: dict[Path, set[bool]] = defaultdict(set)
    for source in sources:
        purposes[source.folder].add(source.is_class)
    if both := [folder for folder, purpose in purposes.items() if len(purpose) > 1]:
        raise DataError(class_images_are_trained(both))


def _scan_folder(source: Source, inner: Sequence[Path], found: _Finds) -> None:
    root, images = source.folder, source.images
    listing = list_folder(root)
    own = [path for path in listing.pictures if not any(path.is_relative_to(folder) for folder in inner)]
    pictures = [path for path in own if found.is_new(path, source)]
    if shared := [path for path in own if path not in set(pictures)]:
        words = count(len(shared), "image")
        found.notes.append(f"{root}: {words} of another folder, linked here and trained once: {some(shared)}")
    found.notes += folder_notes(listing, source)
    records: list[ImageRecord] = []
    masks, animated = Masks(), []
    files = CaptionFolders(root, source.captions)
    for path, facts in inspect_all(pictures, root, images):
        mask_path = listing.mask_of(path) if images.mask == "file" else None
        reason = facts if isinstance(facts, str) else masks.problem(path, facts, mask_path, images)
        if isinstance(facts, str) or reason:
            found.skipped.append(Skipped(path, str(reason)))
            continue
        record = make_record(path, facts, source, files, mask_path)
        records.append(record)
        if facts.is_animated:
            animated.append(path)
    found.records += records
    found.uncaptioned += [record.path for record in records if record.caption is None]
    found.caption_problems += files.problems
    found.notes += files.notes()
    found.warnings += [f"{sentence}: {some(paths)}" for _, sentence, paths in masks.oddities()]
    if animated:
        found.warnings.append(
            f"{count(len(animated), 'animated file')}, of which the first frame is trained: {some(animated)}"
        )
    told = _tell_unread(records, listing, source, found)
    found.left_out += [
        Skipped(path, reason)
        for path, reason in unused(listing, source.captions).items()
        if path not in told and not any(path.is_relative_to(folder) for folder in inner)
    ]


def _tell_unread(records: Sequence[ImageRecord], listing: Listing, source: Source, found: _Finds) -> set[Path]:
    """Say what lies beside the images and is not read as their caption or mask, and which files these are."""
    captions, told = source.captions, set()
    orphans = orphan_captions(listing, captions)
    uncaptioned = [record for record in records if record.caption is None]
    if uncaptioned:
        unread = look_beside(listing, captions_from(uncaptioned), captions, orphans)
        found.hints += [f"{sentence}." for sentence in unread.sentences(captions.extension)]
        told |= unread.files
    for found_in, stand_in in STAND_INS.items():
        replaced = [r for r in records if r.caption is not None and r.caption_from == found_in]
        if not replaced:
            continue
        unread = look_beside(listing, captions_from(replaced), captions, orphans)
        # An empty file for an empty caption is trained as it stands.
        saying = {record.path.with_suffix(captions.extension) for record in replaced if record.caption}
        unread.empty = [path for path in unread.empty if path in saying]
        found.warnings += [f"{text}; {stand_in} is trained instead" for text in unread.sentences(captions.extension)]
        told |= unread.files
    trained = {record.path for record in records}  # a folder inside another one speaks for itself
    if masks := {path: right for path, right in misnamed_masks(listing).items() if path in trained}:
        found.warnings.append(f"{mask_sentence(masks)}; as it is, each is trained as an image")
        found.mask_hints.append(f"{mask_sentence(masks)}.")
        if any(record.path in masks for record in uncaptioned):
            found.hints.append(f"{mask_sentence(masks)}.")
    return told


def captions_from(records: Iterable[ImageRecord]) -> dict[Path, CaptionSource | None]:
    """Where the captions of these images were found."""
    return {record.path: record.caption_from for record in records}


def make_record(
    path: Path, facts: ImageFacts, source: Source, files: CaptionFolders, mask_path: Path | None
) -> ImageRecord:
    """One readable image with all that its folder says about it; caption None where there is none."""
    caption, caption_from = files.found(path)
    named = repeats_folder(path.parent, source.folder)
    in_name = source.images.repeats if named is None else named[0]
    return ImageRecord(
        path=path,
        width_px=facts.width_px,
        height_px=facts.height_px,
        caption=source.captions.default if caption is None else caption,
        content_hash=facts.content_hash,
        repeats=in_name if source.repeats is None else source.repeats,
        mask_path=mask_path,
        is_class=source.is_class,
        has_alpha=facts.has_alpha,
        mask_hash=hash_file(mask_path) if mask_path else "",
        alternatives=files.alternatives(path),
        captions=source.captions,
        resolutions=source.resolutions,
        horizontal_flip=source.images.horizontal_flip,
        mask=source.images.mask,
        crop_focus=source.images.crop_focus,
        loss_weight=source.loss_weight * files.loss_weight(path),
        source=source.number,
        follows_repeats=named is None and source.repeats is None,
        caption_from=caption_from,
    )


def folder_notes(listing: Listing, source: Source) -> Iterator[str]:
    """What names in a folder are read otherwise than a person may think."""
    if source.images.mask != "file" and (masked := sum(listing.mask_of(path) is not None for path in listing.pictures)):
        yield (
            f"{source.folder.name}: {count(masked, 'image')} with a mask beside it (name{MASK_ENDING}), which "
            "images.mask=file trains by; as it is, all of each image is trained"
        )
    by_stem: dict[Path, list[str]] = defaultdict(list)
    for path in listing.pictures:
        by_stem[path.with_suffix("")].append(path.name)
    for stem, names in by_stem.items():
        if len(names) > 1:
            yield f"{' and '.join(names)} share one caption, {stem.name}{source.captions.extension}"
    for folder in dict.fromkeys(path.parent for path in listing.pictures):
        in_name = repeats_folder(folder, source.folder)
        if source.repeats is not None and in_name and in_name[0] != source.repeats:
            yield f"{folder.name}: repeats={source.repeats} of images.folders overrules the {in_name[0]} in its name"
        if source.repeats is None and in_name is None and (number := long_number(folder, source.folder)):
            yield (
                f"{folder.name}: {number} is read as part of the name, as repeats have up to three digits; its images "
                f"count {source.images.repeats} times. To repeat them give images.folders with repeats: {number}"
            )


def _name(path: Path, roots: Sequence[Path]) -> str:
    """The path as messages show it: below its image folder, with that folder's name when there are several."""
    root = next(root for root in roots if path.is_relative_to(root))
    return path.relative_to(root if len(roots) == 1 else root.parent).as_posix()


def inspect_all(
    paths: Sequence[Path], root: Path, images: ImagesConfig, on_each: Callable[[], None] = lambda: None
) -> list[tuple[Path, ImageFacts | str]]:
    """Each path with its facts, or with the reason why it can't be read; `on_each` is called after each."""
    cache_folder = (images.cache_folder or default_cache_folder()) if images.cache else None
    memory = open_memory(root, cache_folder)

    def inspect_one(path: Path) -> ImageFacts | str:
        suffix = path.suffix.lower()
        if suffix in UNREAD_SUFFIXES:
            return why_unread(suffix)
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
