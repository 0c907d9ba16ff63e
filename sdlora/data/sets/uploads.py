"""Uploaded images, captions and zip files put into a dataset; nothing that is there is overwritten unseen.

An image whose name is taken: the same bytes are passed over, others get a number (`a-2.png`), and their caption and
mask with them. A caption for an image that has another one replaces it, as a change that Undo takes back.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from sdlora import atomic
from sdlora.config.images import ImagesConfig
from sdlora.constants import MIB
from sdlora.data.decoding import IMAGE_SUFFIXES, UNREAD_SUFFIXES, UnreadableImageError, open_image
from sdlora.data.fix.changes import Change, apply, hash_of
from sdlora.data.folder_listing import MASK_ENDING
from sdlora.data.metadata_files import METADATA_FILES
from sdlora.data.sets.archives import Limits, RefusedArchiveError, safe_parts, unpack
from sdlora.data.sets.folders import is_image_name, plain_stem
from sdlora.disk import explain, is_file
from sdlora.text_files import read_file

MAX_CAPTION_BYTES = MIB
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What no other file of an upload would fare better with."""
_STAGING = ".incoming-"
_FORGOTTEN_SECONDS = 86400
# Two uploads at once would find the same free names.
_one_at_a_time = threading.Lock()


@dataclass
class Received:
    """What became of an upload."""

    images: int = 0
    captions: int = 0
    masks: int = 0
    same: int = 0
    """Files that are there already, byte for byte."""
    replaced: list[str] = field(default_factory=list)
    """Captions that replaced another one; Undo brings those back."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Images whose name was taken by another picture: the name they have now."""
    refused: dict[str, str] = field(default_factory=dict)
    """By name, why a file was not taken."""
    unclaimed: list[str] = field(default_factory=list)
    """Captions without an image of that name, kept for when it comes."""


def receive(folder: Path, uploads: Sequence[Path], limits: Limits | None = None) -> Received:
    """Move uploaded files into a dataset; zip files are unpacked, with the folders that are in them."""
    report = Received()
    _sweep(folder)
    # Below the dataset, so that files get their places by renaming; hidden, so that no list shows them before.
    staging = folder / f"{_STAGING}{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        for number, upload in enumerate(uploads):
            _stage(upload, staging, f"zip-{number:06d}", report, limits)
        with _one_at_a_time:
            _place_all(folder, staging, report)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _sweep(folder: Path) -> None:
    """Delete what killed servers left of uploads: of one that goes on, here or on another machine, something is new."""
    atomic.sweep(folder, shared=True)
    oldest = time.time() - _FORGOTTEN_SECONDS
    for left in folder.glob(f"{_STAGING}*"):
        with suppress(OSError):
            if max(path.lstat().st_mtime for path in (left, *left.rglob("*"))) < oldest:
                shutil.rmtree(left)


def _stage(upload: Path, staging: Path, zip_place: str, report: Received, limits: Limits | None) -> None:
    """Move an upload to where names don't meet: zip files to a place each, others together as long as names differ."""
    if upload.suffix.lower() == ".zip":
        try:
            _, refused = unpack(upload, staging / zip_place, limits)
            report.refused |= {f"{upload.name}: {name}": reason for name, reason in refused.items()}
        except RefusedArchiveError as error:
            report.refused[upload.name] = str(error)
        upload.unlink(missing_ok=True)
        return
    parts = safe_parts(upload.name)
    if not parts:
        report.refused[upload.name] = "a file of this name can't be kept"
        return
    places = (staging / f"loose-{number:06d}" for number in count())
    place = next(place for place in places if not (place / parts[-1]).exists())
    place.mkdir(exist_ok=True)
    shutil.move(upload, place / parts[-1])


def _place_all(folder: Path, staging: Path, report: Received) -> None:
    """From staging into the dataset: what belongs to one image name together, so that it is renamed together."""
    groups: dict[tuple[Path, Path, str], list[Path]] = defaultdict(list)
    for place in sorted(staging.iterdir()):
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            relative = path.relative_to(place)
            if reason := _why_not(path):
                report.refused[relative.as_posix()] = reason
            elif path.name in METADATA_FILES:
                _place_metadata(path, folder / relative, report)
            else:
                groups[place, relative.parent, plain_stem(path.name)].append(path)
    replacing: list[Change] = []
    for (_, subfolder, stem), files in groups.items():
        try:
            (folder / subfolder).mkdir(parents=True, exist_ok=True)
            _place_group(folder / subfolder, stem, files, report, replacing)
        except OSError as error:
            if error.errno in _OF_THE_DISK:
                raise
            # What lies at one name hinders that name alone.
            left = [path for path in files if path.exists()]
            report.refused |= {(subfolder / path.name).as_posix(): explain(error) for path in left}
    apply(folder, replacing)
    report.replaced += [change.path.relative_to(folder.resolve()).as_posix() for change in replacing]


def _why_not(path: Path) -> str | None:
    """Why a file is not taken, None for one that is."""
    suffix = path.suffix.lower()
    if suffix in UNREAD_SUFFIXES:
        return f"{suffix} files are not read: save it as PNG or JPEG"
    if suffix == ".zip":
        return "a zip file inside a zip file is not unpacked"
    if path.name in METADATA_FILES:
        return None
    if suffix == ".txt":
        return "too long for a caption" if path.stat().st_size > MAX_CAPTION_BYTES else None
    if suffix not in IMAGE_SUFFIXES:
        return "neither an image nor a caption (.txt) nor a zip file"
    try:
        with open_image(path, ImagesConfig().max_megapixels):
            return None
    except UnreadableImageError as error:
        return str(error)


def _place_metadata(path: Path, target: Path, report: Received) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.move(path, target)
        report.captions += 1
    elif hash_of(path) == hash_of(target):
        report.same += 1
    else:
        report.refused[path.name] = "the dataset has another one: add captions as .txt files"


def _place_group(folder: Path, stem: str, files: Sequence[Path], report: Received, replacing: list[Change]) -> None:
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    masks = [path for path in files if is_image_name(path.name) and path.stem.endswith(MASK_ENDING)]
    images = [path for path in files if is_image_name(path.name) and path not in masks]
    stems = dict.fromkeys(_place_image(folder, stem, image, report) for image in images) or {stem: None}
    for final_stem in stems:
        for mask in masks:
            _place_mask(mask, folder / f"{final_stem}{MASK_ENDING}{mask.suffix}", report)
        for text in texts:
            _place_text(text.read_bytes(), folder / f"{final_stem}.txt", report, replacing)


def _place_image(folder: Path, stem: str, image: Path, report: Received) -> str:
    """Put an image in place; returns the stem that it has in the dataset."""
    free = stem
    for free in atomic.numbered(stem):
        taken = _images_named(folder, free)
        if same := next((other for other in taken if _is_same(other, image)), None):
            report.same += 1
            return same.stem
        # At its own name a caption may wait for it; at a numbered one it is another image's.
        if not taken and (free == stem or not (folder / f"{free}.txt").exists()):
            break
    atomic.move(image, folder / f"{free}{image.suffix}")
    if free != stem:
        report.renamed[image.name] = f"{free}{image.suffix}"
    report.images += 1
    return free


def _images_named(folder: Path, stem: str) -> list[Path]:
    beside = (folder / f"{stem}{suffix}" for suffix in _spelled(IMAGE_SUFFIXES))
    # Also what is no file: a link to a disk that isn't there now, or a folder, is not written over.
    return [path for path in beside if os.path.lexists(path)]


def _is_same(one: Path, other: Path) -> bool:
    return is_file(one) and hash_of(one) == hash_of(other)


def _spelled(suffixes: Sequence[str]) -> list[str]:
    return [spelling(suffix) for suffix in suffixes for spelling in (str.lower, str.upper)]


def _place_mask(mask: Path, target: Path, report: Received) -> None:
    if not target.exists():
        atomic.copy_file(mask, target)
        report.masks += 1
    elif hash_of(mask) == hash_of(target):
        report.same += 1
    else:
        report.refused[mask.name] = "the image has another mask: delete that first"


def _place_text(content: bytes, target: Path, report: Received, replacing: list[Change]) -> None:
    if not target.exists():
        atomic.write_bytes(target, content)
        report.captions += 1
        if not _images_named(target.parent, target.stem):
            report.unclaimed.append(target.name)
    elif read_file(target) == content:
        report.same += 1
    else:
        given: Callable[[], bytes] = partial(bytes, content)
        replacing.append(Change(("upload",), target.resolve(), given, "caption from an upload"))
