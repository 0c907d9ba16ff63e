"""A dataset as the rules see it: each picture with its facts, caption and figures, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.caption_files import CaptionFolders
from sdlora.data.decoding import UnreadableImageError
from sdlora.data.folder_listing import Listing, list_folder
from sdlora.data.image_sources import Source, inner_folders, sources_of
from sdlora.data.images import (
    THREADS,
    ImageRecord,
    captions_from,
    folder_notes,
    inspect_all,
    make_record,
)
from sdlora.data.lint.measures import Measures, measure
from sdlora.data.mask_files import Masks
from sdlora.data.unread import Unread, look_beside, misnamed_masks, orphan_captions


@dataclass(frozen=True)
class Sample:
    """A picture that can be read, with its caption and all that the rules ask of it."""

    record: ImageRecord
    measures: Measures


@dataclass
class Dataset:
    """What lies in the folders, sorted by what the rules need: readable pictures, and each kind of trouble."""

    folders: tuple[Path, ...]
    records: list[ImageRecord] = field(default_factory=list)
    """The readable pictures as training sees them, `caption` None where there is none."""
    samples: list[Sample] = field(default_factory=list)
    """The same with their figures, if asked for."""
    broken: dict[Path, str] = field(default_factory=dict)
    """Pictures that can't be used, with the reason."""
    caption_problems: list[str] = field(default_factory=list)
    """A sentence for each caption file that can't be read, apart from wrong encodings."""
    notes: list[str] = field(default_factory=list)
    """What names are read otherwise than a person may think."""
    caption_notes: list[str] = field(default_factory=list)
    """What metadata files say that is not trained as it stands."""
    wrongly_encoded: list[Path] = field(default_factory=list)
    """Caption files that are no text in UTF-8 or UTF-16."""
    unread: Unread = field(default_factory=Unread)
    """What may be meant as the captions of pictures that have none of their own."""
    misnamed_masks: dict[Path, Path] = field(default_factory=dict)
    """Pictures named like a mask of another one, each with the path that would be read."""
    masks: Masks = field(default_factory=Masks)
    """What is odd about the masks that are used."""
    orphan_captions: dict[Path, Path] = field(default_factory=dict)
    """Captions without an image of their name, each with the path that its image would have, without an ending."""
    zero_repeats: list[Path] = field(default_factory=list)
    """Pictures in folders called `0_name`."""


def gather(
    folders: Sequence[Path],
    images: ImagesConfig,
    captions: CaptionsConfig,
    *,
    figures: bool = True,
    is_class: bool = False,
    apart: Sequence[Path] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Read every picture of the folders, each file once, and measure it if `figures` are asked for.

    is_class: they are class images, whose captions stay without trigger, prefix and suffix. apart: other folders, which
    may lie in these and are read for themselves.

    on_progress: called with how much is done and how much there is in all. Raises DataError for an empty folder.
    """
    found = Dataset(tuple(folders))
    seen: set[Path] = set()
    pictures: dict[Path, tuple[Listing, list[Path]]] = {}
    # A missing caption is a finding of its own here, whatever captions.default would put in its place.
    shared = captions.model_copy(update={"default": None})
    sources = {source.folder: source for source in sources_of(images, shared, folders, is_class=is_class)}
    for root in sources:
        listing = list_folder(root)
        inner = inner_folders(root, [*sources, *apart])
        pictures[root] = (
            listing,
            [
                path
                for path in listing.pictures
                if path.resolve() not in seen and not any(path.is_relative_to(folder) for folder in inner)
            ],
        )
        found.orphan_captions |= {
            path: stem
            for path, stem in orphan_captions(listing, sources[root].captions).items()
            if not any(path.is_relative_to(folder) for folder in inner)
        }
        seen.update(path.resolve() for path in pictures[root][1])
    done, total = 0, len(seen) * (2 if figures else 1)

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, total)

    for root, (listing, paths) in pictures.items():
        _gather_folder(sources[root], listing, paths, found, advance)
    if figures:
        for record, measures in _measure_all(found.records, max(images.resolutions)):
            advance()
            if isinstance(measures, str):
                # A file that breaks off in the middle shows that only here, where it is decoded whole.
                found.broken[record.path] = measures
            else:
                found.samples.append(Sample(record, measures))
        found.records = [sample.record for sample in found.samples]
    return found


def _gather_folder(
    source: Source,
    listing: Listing,
    pictures: Sequence[Path],
    found: Dataset,
    on_each: Callable[[], None],
) -> None:
    images, captions = source.images, source.captions
    files = CaptionFolders(source.folder, captions)
    records: list[ImageRecord] = []
    masks = Masks()
    for path, facts in inspect_all(pictures, source.folder, images, on_each):
        mask_path = listing.mask_of(path) if images.mask == "file" else None
        reason = facts if isinstance(facts, str) else masks.problem(path, facts, mask_path, images)
        if isinstance(facts, str) or reason:
            found.broken[path] = str(reason)
            continue
        record = make_record(path, facts, source, files, mask_path)
        if record.repeats == 0:
            found.zero_repeats.append(path)
            # That it is never trained is a finding of its own; for the other rules the image counts once.
            record = replace(record, repeats=1)
        records.append(record)
    found.records += records
    found.masks.add(masks)
    _add_unread(found, records, listing, captions)
    found.notes += folder_notes(listing, source)
    found.caption_notes += files.notes()
    encodings = files.wrongly_encoded.values()
    found.wrongly_encoded += files.wrongly_encoded
    found.caption_problems += [problem for problem in files.problems if problem not in encodings]


def _add_unread(found: Dataset, records: Sequence[ImageRecord], listing: Listing, captions: CaptionsConfig) -> None:
    without = captions_from(record for record in records if record.caption_from != "file")
    unread = look_beside(listing, without, captions, orphan_captions(listing, captions))
    found.unread.other_endings |= unread.other_endings
    found.unread.misnamed |= unread.misnamed
    found.unread.empty += unread.empty
    found.unread.tables += unread.tables
    found.misnamed_masks |= misnamed_masks(listing)


def _measure_all(records: Sequence[ImageRecord], edge_px: int) -> Iterator[tuple[ImageRecord, Measures | str]]:
    def look(record: ImageRecord) -> Measures | str:
        try:
            return measure(record.path, edge_px)
        except UnreadableImageError as error:
            return str(error)

    with ThreadPoolExecutor(THREADS) as threads:
        yield from zip(records, threads.map(look, records), strict=True)
