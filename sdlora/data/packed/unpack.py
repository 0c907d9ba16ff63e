"""A packed dataset as plain folders of images and captions: streaming, resumable, safe with files from anywhere.

    OUT/00000-<name of the first file>/<sample>.jpg, .txt
    OUT/.sdlora-import.json                           what comes from where, and how far it has come

Training reads folders, so a packed set is unpacked once. Memory holds a few samples, and the names and captions of one
packed file, whatever the size of the set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sdlora import atomic
from sdlora.constants import MIB
from sdlora.data.decoding import UnreadableImageError, suffix_of
from sdlora.data.metadata_files import METADATA_FILES
from sdlora.data.packed.parquet import PARQUET_SUFFIX, check_columns, read_parquet
from sdlora.data.packed.samples import Named, PackedSample, Unusable, file_stem
from sdlora.data.packed.webdataset import TAR_SUFFIXES, read_shard
from sdlora.errors import DataError

MARKER = ".sdlora-import.json"
_UNUSABLE_KEPT = 100
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SUFFIXES = (*TAR_SUFFIXES, PARQUET_SUFFIX)


@dataclass
class Unpacked:
    """How many images an import wrote, found written, and left out."""

    images: int = 0
    """Images in the folder that this call wrote."""
    before: int = 0
    """Images that an interrupted call before this one had written."""
    uncaptioned: int = 0
    num_unusable: int = 0
    unusable: list[Unusable] = field(default_factory=list)
    """The first of those that can't be used."""
    unused: dict[str, Named] = field(default_factory=dict)
    """Files beside the samples that are not used, by the reason."""
    with_others: Named = field(default_factory=Named)
    """Images that have another caption, which is not taken."""
    notes: list[str] = field(default_factory=list)
    """Which of several columns are taken."""


@dataclass
class _Marker:
    """The state of an import, on disk: of which files it is, and which of them are done, for the call that goes on."""

    files: dict[str, int]
    """Packed files and their sizes."""
    caption_column: str | None
    done: list[str] = field(default_factory=list)


def packed_files(source: Path) -> list[Path]:
    """The tar and parquet files that a source stands for; empty when it is something else.

    source: a file, a folder with such files in it, or a pattern such as `set-{000..012}.tar`.
    """
    source = source.expanduser()
    if _RANGE.search(source.name):
        return [source.with_name(name) for name in _expanded(source.name)]
    if source.is_dir():
        inside = sorted(path for path in source.rglob("*") if path.is_file())
        return [path for path in inside if _is_packed(path) and path.name not in METADATA_FILES]
    return [source] if _is_packed(source) else []


def unpack(
    source: Path,
    out: Path,
    *,
    caption_column: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Unpacked:
    """Write the images and captions of a packed dataset into a new folder; interrupted, the same call goes on.

    caption_column: for parquet files, see `check_columns`. on_progress: called with MiB read and in all. Samples that
    can't be used are told of in the result. Raises DataError for a source that is no packed dataset or lacks files,
    and for a folder that holds something else or a finished import; MissingPackageError for parquet without pyarrow.
    """
    files = packed_files(source)
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        what = f"lacks {', '.join(missing)}" if missing else f"holds no {', '.join(_SUFFIXES)} files"
        raise DataError(f"{source} {what}.")
    result = Unpacked()
    # The first speaks for all: the files of one set have one schema.
    for path in [path for path in files if path.suffix == PARQUET_SUFFIX][:1]:
        check_columns(path, caption_column)
    marker = _begin(out, files, caption_column)
    sizes, total = list(marker.files.values()), sum(marker.files.values())

    for index, path in enumerate(files):
        if str(path) in marker.done:
            continue
        read_before = sum(sizes[:index])

        def advance(read: int, before: int = read_before) -> None:
            if on_progress:
                on_progress((before + read) // MIB, max(total // MIB, 1))

        folder = out / f"{index:05d}-{file_stem(path.name.partition('.')[0])}"
        _unpack_file(path, folder, caption_column, result, advance)
        # On the disk before it is called done, or a power cut would leave a gap that nothing fills.
        atomic.settle(folder)
        marker.done.append(str(path))
        atomic.write_json(out / MARKER, asdict(marker))
    return result


def _unpack_file(
    path: Path, folder: Path, caption_column: str | None, result: Unpacked, advance: Callable[[int], None]
) -> None:
    folder.mkdir(exist_ok=True)
    if path.suffix == PARQUET_SUFFIX:
        result.notes += [note for note in check_columns(path, caption_column) if note not in result.notes]
    stems: set[str] = set()
    for sample in _samples(path, caption_column, result, advance):
        if isinstance(sample, PackedSample):
            try:
                suffix = suffix_of(sample.image)
            except UnreadableImageError as error:
                sample = Unusable(sample.name, str(error))
        if isinstance(sample, Unusable):
            result.num_unusable += 1
            if len(result.unusable) < _UNUSABLE_KEPT:
                result.unusable.append(sample)
            continue
        # A name that a sample before had gets a number; to some disks, names that differ in case only are one.
        stem = next(name for name in atomic.numbered(file_stem(sample.name)) if name.lower() not in stems)
        stems.add(stem.lower())
        result.uncaptioned += sample.caption is None
        if sample.has_others:
            result.with_others.add(sample.name)
        if _holds(folder / f"{stem}{suffix}", sample.image):
            result.before += 1
            continue
        if sample.caption is not None:  # before the image, so that an image on the disk is a finished sample
            atomic.write_bytes(folder / f"{stem}.txt", sample.caption.encode(), durable=False)
        atomic.write_bytes(folder / f"{stem}{suffix}", sample.image, durable=False)
        result.images += 1


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file is there as it should be; a power cut may have left one that is too short."""
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _samples(
    path: Path, caption_column: str | None, result: Unpacked, advance: Callable[[int], None]
) -> Iterator[PackedSample | Unusable]:
    if path.suffix == PARQUET_SUFFIX:
        size = path.stat().st_size
        yield from read_parquet(path, caption_column, lambda share: advance(int(share * size)))
        return
    with path.open("rb") as file:
        for sample in read_shard(path, file, lambda name, why: result.unused.setdefault(why, Named()).add(name)):
            yield sample
            advance(file.tell())


def _begin(out: Path, files: list[Path], caption_column: str | None) -> _Marker:
    """The state to go on from. Raises DataError for a folder that this import can't be written into."""
    wanted = _Marker({str(path): path.stat().st_size for path in files}, caption_column)
    there = list(out.iterdir()) if out.is_dir() else []
    atomic.sweep_names(there)
    # What a kill before the first marker left half written is nothing, either.
    if not out.exists() or (out.is_dir() and all(path.name.startswith(f".{MARKER}.") for path in there)):
        out.mkdir(parents=True, exist_ok=True)
        atomic.write_json(out / MARKER, asdict(wanted))
        return wanted
    try:
        known = _Marker(**json.loads((out / MARKER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DataError(f"{out} holds something else already: give --out a new folder.") from None
    if (known.files, known.caption_column) != (wanted.files, caption_column):
        raise DataError(f"{out} holds another import, of {', '.join(known.files)}: give --out a new folder.")
    if len(known.done) == len(known.files):
        raise DataError(f"{out} holds this import already, finished.")
    atomic.sweep(out, shared=True)
    return known


def _expanded(name: str) -> list[str]:
    """set-{000..002}.tar as set-000.tar, set-001.tar, set-002.tar."""
    match = _RANGE.search(name)
    if match is None:
        return [name]
    first, last = match[1], match[2]
    numbers = range(int(first), int(last) + 1)
    return [f"{name[: match.start()]}{number:0{len(first)}d}{name[match.end() :]}" for number in numbers]


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)
