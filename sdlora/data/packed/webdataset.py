"""Samples of a webdataset shard: a tar archive in which files of one name belong together.

    000017.jpg   the image
    000017.txt   its caption, or 000017.json with a text, caption or prompt

The archive is read front to back twice: first its names and captions, which may stand behind all images, then one image
at a time. Nothing of its names becomes a path.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from sdlora.constants import MIB
from sdlora.data.decoding import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from sdlora.data.metadata_files import caption_of, has_several
from sdlora.data.packed.samples import LARGEST_BYTES, PackedSample, Unusable
from sdlora.text_files import UnreadableTextError, decode_text, parse_json

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_JSON_SUFFIX = ".json"
_TEXT_SUFFIXES = (".txt", ".caption", _JSON_SUFFIX)
"""Where captions are looked for, the first one that says something winning."""
_KNOWN = (*IMAGE_SUFFIXES, *_TEXT_SUFFIXES)
_LARGEST_TEXT_BYTES = 16 * MIB
_MOST_OF_A_NAME = 50
"""More files of one name are left out: each is compared with all of them."""
OnUnused = Callable[[str, str], None]


@dataclass(frozen=True)
class _Part:
    """A file of the archive: the sample it belongs to, its ending, and which of the sample's places it stands at.

    Archives that were joined have a name twice, each with files of its own side by side: these are two places.
    """

    key: str
    suffix: str
    place: int
    whole: str
    """The name up to its first dot, by which webdataset itself goes: dog for dog.seg.png."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A caption file: what it says, and whether it says more than that; or why it can't be read."""

    place: int
    suffix: str
    caption: str = ""
    has_others: bool = False
    problem: str = ""


@dataclass
class _Contents:
    """What is known of an archive before its images are read, by key."""

    # Few bytes each, as an archive may hold a million: place and ending of each image.
    images: dict[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    texts: dict[str, list[_Text]] = field(default_factory=dict)

    def is_component(self, part: _Part) -> bool:
        """Whether it is a further part of a sample that has an image: dog.seg.png beside dog.jpg."""
        return part.key != part.whole and part.whole in self.images

    def is_chosen(self, part: _Part) -> bool:
        """Whether an image is the one that its sample is unpacked with."""
        there = {suffix for place, suffix in self.images.get(part.key, ()) if place == part.place}
        return part.suffix == next((suffix for suffix in IMAGE_SUFFIXES if suffix in there), None)

    def texts_of(self, key: str, place: int) -> list[_Text]:
        """The captions of an image, an ending each: those beside it, and elsewhere where the name is its alone."""
        is_alone = len({place for place, _ in self.images.get(key, ())}) == 1
        found = [text for text in self.texts.get(key, ()) if is_alone or text.place == place]
        nearest = {text.suffix: text for text in sorted(found, key=lambda text: text.place == place)}
        return [nearest[suffix] for suffix in _TEXT_SUFFIXES if suffix in nearest]

    def orphans(self) -> Iterator[tuple[str, str]]:
        """The captions that no image has, each with the reason."""
        for key, texts in self.texts.items():
            images = self.images.get(key, ())
            used = {id(text) for place, _ in images for text in self.texts_of(key, place)}
            why = "a second caption of its sample" if images else "a caption without an image of its name"
            yield from ((f"{key}{text.suffix}", why) for text in texts if id(text) not in used)


def read_shard(path: Path, file: IO[bytes], on_unused: OnUnused) -> Iterator[PackedSample | Unusable]:
    """The samples of a shard (opened as `file`), in its order.

    What can't be used, a damaged end of the archive too, comes as an Unusable. on_unused: called with the name of each
    file that belongs to no sample, and the reason.
    """
    contents = _look(file, on_unused)
    for name, why in contents.orphans():
        on_unused(name, why)
    file.seek(0)
    last, unpacked_place = "", 0
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member, part in _parts(archive):
                if part is None or part.suffix not in IMAGE_SUFFIXES:
                    continue
                last = part.key
                if contents.is_component(part):
                    on_unused(member.name, "a further part of a sample that has an image")
                elif part.place == unpacked_place or not contents.is_chosen(part):
                    on_unused(member.name, "a second image of its sample")
                elif member.size > LARGEST_BYTES:
                    yield Unusable(part.key, f"{member.name} has {member.size / MIB:.0f} MiB")
                else:
                    unpacked_place = part.place
                    content = archive.extractfile(member)
                    texts = contents.texts_of(part.key, part.place)
                    yield _sample(part.key, content.read() if content else b"", texts)
        if path.suffix == ".tar" and _is_cut_off(file, path.stat().st_size):
            yield Unusable(path.name, f"the archive ends behind '{last}' without its end mark: it may be cut off")
    except (tarfile.TarError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's fault: read again, it may well be sound
            raise
        yield Unusable(path.name, f"the archive is damaged behind '{last}' ({error}): the rest of it is lost")


def _look(file: IO[bytes], on_unused: OnUnused) -> _Contents:
    """Names and captions of an archive, as far as it can be read."""
    contents, left_bytes = _Contents(), LARGEST_BYTES
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member, part in _parts(archive):
                if part is None:
                    if why := _why_unused(member):
                        on_unused(member.name, why)
                elif part.suffix in IMAGE_SUFFIXES and len(contents.images.get(part.key, ())) < _MOST_OF_A_NAME:
                    contents.images[part.key] = (*contents.images.get(part.key, ()), (part.place, part.suffix))
                elif part.suffix in IMAGE_SUFFIXES:
                    continue  # told with the images
                elif len(contents.texts.get(part.key, ())) >= _MOST_OF_A_NAME:
                    on_unused(member.name, "a second caption of its sample")
                elif member.size > min(_LARGEST_TEXT_BYTES, left_bytes):
                    on_unused(member.name, "too large for a caption")
                else:
                    content = archive.extractfile(member)
                    text = _text(part, content.read() if content else b"")
                    if text is None:
                        on_unused(member.name, "no JSON")
                        continue
                    contents.texts.setdefault(part.key, []).append(text)
                    left_bytes -= len(text.caption)
    except (tarfile.TarError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
    return contents


def _is_cut_off(file: IO[bytes], size: int) -> bool:
    """Whether a tar lacks the two empty blocks at its end, which a copy that was broken off does.

    Python's reader takes an end within a header, or at one, for the end of the archive.
    """
    file.seek(0)
    if file.read(2) == b"\x1f\x8b":  # gzip under a tar's name has checksums of its own
        return False
    file.seek(max(size - 2 * tarfile.BLOCKSIZE, 0))
    return any(file.read(2 * tarfile.BLOCKSIZE))


def _parts(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, _Part | None]]:
    """The archive's members, each with the part of a sample that it is by its name, if any."""
    key, place = "", 0
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # else every header read so far stays in memory
        whole, own, suffix = _split(member.name)
        if not member.isfile() or suffix not in _KNOWN or PurePosixPath(own).name.startswith("."):
            yield member, None
            continue
        place += own != key
        key = own
        yield member, _Part(own, sys.intern(suffix), place, whole)


def _split(name: str) -> tuple[str, str, str]:
    """A member's name up to the first dot of its file name, its key and its ending.

    webdataset ends the key at the first dot. What stands there is no ending for a name with a date in it, such as
    `IMG 2024.01.05.jpg`, whose key ends at the last dot.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    stem, dot, ending = path.name.partition(".")
    whole = str(path.parent / stem)
    if f"{dot}{ending}".lower() in _KNOWN:
        return whole, whole, f"{dot}{ending}".lower()
    return whole, str(path.parent / path.stem), path.suffix.lower()


def _why_unused(member: tarfile.TarInfo) -> str:
    """Why a member is no part of a sample; empty for folders, which go without saying."""
    suffix = _split(member.name)[2]
    if not member.isfile():
        return "" if member.isdir() else "a link or a device, not a file"
    if PurePosixPath(member.name).name.startswith("."):
        return "hidden"
    if suffix in UNREAD_SUFFIXES:
        return f"{suffix} files are not read; save them as PNG or JPEG"
    return "neither an image nor a caption by its ending"


def _text(part: _Part, content: bytes) -> _Text | None:
    """What a caption file says; None for a .json file that is none."""
    try:
        text = decode_text(content)
    except UnreadableTextError as error:
        return _Text(part.place, part.suffix, problem=str(error))
    if part.suffix != _JSON_SUFFIX:
        return _Text(part.place, part.suffix, text.strip())
    try:
        values = parse_json(text)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return _Text(part.place, part.suffix)
    return _Text(part.place, part.suffix, (caption_of(values) or "").strip(), has_several(values))


def _sample(key: str, image: bytes, texts: list[_Text]) -> PackedSample | Unusable:
    chosen = next((text for text in texts if text.caption or text.problem), None)
    if chosen is None:
        return PackedSample(key, image, None)
    if chosen.problem:
        return Unusable(key, f"its caption {chosen.problem}")
    differ = any(text.caption not in ("", chosen.caption) for text in texts)
    return PackedSample(key, image, chosen.caption, differ or chosen.has_others)
