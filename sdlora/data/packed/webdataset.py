"""Samples of a webdataset shard: a tar archive in which files of one name belong together.

    000017.jpg   the image
    000017.txt   its caption, or 000017.json with a text, caption or prompt

The archive is read front to back, one sample at a time in memory. Nothing of its names becomes a path.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from sdlora.constants import MIB
from sdlora.data.decoding import IMAGE_SUFFIXES
from sdlora.data.metadata_files import caption_of
from sdlora.data.packed.samples import LARGEST_BYTES, PackedSample, Unusable
from sdlora.text_files import UnreadableTextError, decode_text, parse_json

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_TEXT_SUFFIXES = (".txt", ".caption")
_JSON_SUFFIX = ".json"


def read_shard(path: Path, file: IO[bytes]) -> Iterator[PackedSample | Unusable]:
    """The samples of a shard (opened as `file`), in its order; samples without an image are passed over.

    What can't be used, a damaged end of the archive too, comes as an Unusable.
    """
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else every header read so far stays in memory
                name, suffix = _split(member.name)
                if not member.isfile() or suffix not in (*IMAGE_SUFFIXES, *_TEXT_SUFFIXES, _JSON_SUFFIX):
                    continue
                if name != key:
                    yield from _sample(key, parts)
                    key, parts = name, {}
                if member.size > LARGEST_BYTES:
                    yield Unusable(name, f"{member.name} has {member.size / MIB:.0f} MiB")
                    continue
                content = archive.extractfile(member)
                parts.setdefault(suffix, content.read() if content else b"")
            yield from _sample(key, parts)
    except (tarfile.TarError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's fault: read again, it may well be sound
            raise
        yield Unusable(path.name, f"the archive is damaged behind '{key}' ({error}): the rest of it is lost")


def _split(name: str) -> tuple[str, str]:
    """A member's key and ending: up to the first dot of its file name, and from there on."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem, dot, ending = path.name.partition(".")
    return str(path.parent / stem), f"{dot}{ending}".lower()


def _sample(key: str, parts: dict[str, bytes]) -> Iterator[PackedSample | Unusable]:
    image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
    if image is None:
        return
    try:
        yield PackedSample(key, image, _caption(parts))
    except UnreadableTextError as error:
        yield Unusable(key, f"its caption {error}")


def _caption(parts: dict[str, bytes]) -> str | None:
    for suffix in _TEXT_SUFFIXES:
        if suffix in parts:
            return decode_text(parts[suffix]).strip() or None
    if _JSON_SUFFIX in parts:
        text = decode_text(parts[_JSON_SUFFIX])
        with suppress(ValueError):
            values = parse_json(text)
            return (caption_of(values) or "").strip() or None if isinstance(values, dict) else None
    return None
