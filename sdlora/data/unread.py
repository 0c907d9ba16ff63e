"""What lies beside images, looks like their captions or masks, and is not read as such."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdlora.config.images import CaptionsConfig
from sdlora.data.caption_files import CaptionFolders, CaptionSource
from sdlora.data.folder_listing import MASK_ENDING, Listing
from sdlora.data.metadata_files import METADATA_FILES
from sdlora.data.scan_problems import almost_captions
from sdlora.words import count, first_few

CAPTION_SUFFIXES = (".caption", ".cap", ".txt")
"""Endings that other trainers give caption files."""
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_COMPANIONS = (".npz", ".safetensors")
"""Other trainers' caches, which may lie beside the images."""
_TABLE_OF_CAPTIONS = re.compile(r"caption|prompt|meta|tags|labels", re.IGNORECASE)
_MASK_OF = re.compile(r"(.+?)[-_. ]+masks?[-_ ]?(?:label)?", re.IGNORECASE)


@dataclass
class Unread:
    """Files that may be meant as the captions of images that have none of their own."""

    other_endings: dict[Path, Path] = field(default_factory=dict)
    """By image: a.caption, or a.TXT, where a.txt would be read."""
    misnamed: dict[Path, Path] = field(default_factory=dict)
    """Captions that differ from their image's name a little, each with its right path."""
    elsewhere: list[Path] = field(default_factory=list)
    """Captions of an image's exact name in another folder than it."""
    empty: list[Path] = field(default_factory=list)
    """Caption files that say nothing."""
    tables: list[Path] = field(default_factory=list)
    """JSON files beside images, and tables of captions by another name than those that are read."""

    @property
    def files(self) -> set[Path]:
        """All of them."""
        return {*self.other_endings.values(), *self.misnamed, *self.elsewhere, *self.empty, *self.tables}

    def sentences(self, extension: str) -> Iterator[str]:
        """A sentence for each kind, without its full stop. extension: that of the caption files that are read."""
        if self.other_endings:
            names = some(self.other_endings.values())
            yield (
                f"{_are('caption', self.other_endings)} not read, as captions.extension is {extension}: {names} "
                "(`sdlora dataset fix FOLDER --rules caption-extension` renames them)"
            )
        if self.misnamed:
            pairs = [f"{path.name} (did you mean {meant.name}?)" for path, meant in self.misnamed.items()]
            yield f"{_are('caption', self.misnamed)} of no image's exact name, so not read: {first_few(pairs)}"
        if self.elsewhere:
            places = [f"{path.parent.name}/{path.name}" for path in self.elsewhere]
            yield (
                f"{_are('caption', self.elsewhere)} in another folder than the image, so not read: {first_few(places)}."
                " Move each beside its image"
            )
        if self.empty:
            yield f"{_are('caption file', self.empty)} empty: {some(self.empty)}"
        if self.tables:
            yield (
                f"{_are('file', self.tables)} not read for captions: {some(self.tables)}. Those that are: {extension} "
                f"files beside the images, {', '.join(METADATA_FILES)}"
            )


def look_beside(
    listing: Listing,
    without: Mapping[Path, CaptionSource | None],
    captions: CaptionsConfig,
    orphans: Mapping[Path, Path],
) -> Unread:
    """What may be meant as captions of the images `without` a caption file that says something.

    without: each such image, with where its caption comes from. orphans: as for `almost_captions`.
    """
    bare = [path for path, source in without.items() if source != "metadata"]
    found = Unread(empty=[each for path in without if (each := path.with_suffix(captions.extension)).is_file()])
    texts: dict[Path, list[Path]] = {}
    for path in listing.files:
        if path.suffix.lower() in (*CAPTION_SUFFIXES, captions.extension.lower()):
            texts.setdefault(path.with_suffix(""), []).append(path)
    for picture in bare:
        beside = texts.get(picture.with_suffix(""), [])
        if beside and not any(path.suffix == captions.extension for path in beside):
            found.other_endings[picture] = beside[0]
    found.misnamed = almost_captions([path for path in bare if path not in found.other_endings], orphans)
    bare_names = {path.stem for path in bare if path not in found.other_endings}
    found.elsewhere = [
        path for path, image in orphans.items() if image.name in bare_names and path not in found.misnamed
    ]
    folders = {folder for path in bare for folder in (path.parent, *path.parents)}
    names = {name for path in bare for name in (path.with_suffix(""), path)}
    found.tables = [
        path
        for path in listing.files
        if path.suffix.lower() in TABLE_SUFFIXES
        and path.name not in METADATA_FILES
        and (path.with_suffix("") in names or (path.parent in folders and _TABLE_OF_CAPTIONS.search(path.stem)))
    ]
    return found


def unused(listing: Listing, captions: CaptionsConfig) -> dict[Path, str]:
    """What lies in a folder and is not trained, with the reason; companions of images are not among it."""
    unused = dict(listing.left_out)
    orphans = orphan_captions(listing, captions)
    for path, ending in _others(listing, captions):
        if ending is None:
            unused[path] = _why_unused(path, captions)
        elif path in orphans:
            unused[path] = "a caption without an image of its name"
    return unused


def _why_unused(path: Path, captions: CaptionsConfig) -> str:
    suffix = path.suffix.lower()
    if suffix in (*CAPTION_SUFFIXES, captions.extension.lower()):
        return f"a caption file of another ending than {captions.extension} (captions.extension)"
    if suffix in TABLE_SUFFIXES:
        return f"not read; captions come from {captions.extension} files and {METADATA_FILES[0]}"
    return "not an image"


def orphan_captions(listing: Listing, captions: CaptionsConfig) -> dict[Path, Path]:
    """Captions without an image of their name, each with the path that its image would have, without an ending."""
    stems = {path.with_suffix("") for path in listing.pictures}
    named = {path: path.with_name(path.name.removesuffix(end)) for path, end in _others(listing, captions) if end}
    return {path: stem for path, stem in named.items() if stem not in stems}


def _others(listing: Listing, captions: CaptionsConfig) -> Iterator[tuple[Path, str | None]]:
    """The files that are no images and belong to none as its mask or cache, each with its ending if a caption's."""
    read = {*listing.pictures, *listing.masks.values()}
    # The longest first: a-short.txt ends in .txt, too, and must be read as the -short.txt that is asked for.
    endings = sorted((captions.extension, *captions.alternatives), key=len, reverse=True)
    for path in listing.files:
        if path in read or path.name in METADATA_FILES or path.suffix.lower() in _COMPANIONS:
            continue
        yield path, next((each for each in endings if path.name.endswith(each)), None)


def unread_in(folder: Path, listing: Listing) -> list[str]:
    """A sentence for each kind of file that may be meant as a caption and isn't read, where a .txt file would be.

    Empty files are passed over: they are what there is to fill.
    """
    sources, captions = CaptionFolders(folder), CaptionsConfig()
    without = {path: None for path in listing.pictures if sources.own_caption(path) is None}
    unread = look_beside(listing, without, captions, orphan_captions(listing, captions))
    unread.empty.clear()
    return list(unread.sentences(captions.extension))


def misnamed_masks(listing: Listing) -> dict[Path, Path]:
    """Pictures named like a mask of another one (a_mask.png beside a.png), each with the path that would be read."""
    stems = {path.with_suffix("") for path in listing.pictures}
    found = {}
    for path in listing.pictures:
        match = _MASK_OF.fullmatch(path.stem)
        if match and path.with_name(match[1]) in stems:
            found[path] = path.with_name(f"{match[1]}{MASK_ENDING}.png")
    return found


def mask_sentence(masks: Mapping[Path, Path]) -> str:
    """What is to be said of misnamed masks, without its full stop."""
    right = next(iter(masks.values())).name
    looks = "looks like a mask" if len(masks) == 1 else "look like masks"
    return f"{count(len(masks), 'image')} {looks} by the name: {some(masks)}. A mask is called {right} and the like"


def some(paths: Iterable[Path]) -> str:
    """The names of the first few files, and how many more there are."""
    return first_few([path.name for path in paths])


def _are(what: str, them: Sequence[Path] | Mapping[Path, Path]) -> str:
    return f"{count(len(them), what)} {'is' if len(them) == 1 else 'are'}"
