"""Zip files unpacked with care: nothing lands outside the folder, and no bomb goes off."""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sdlora.constants import GIB, MIB
from sdlora.data.caption_files import repeats_folder
from sdlora.data.decoding import IMAGE_SUFFIXES
from sdlora.data.sets.folders import clean_part
from sdlora.disk import explain
from sdlora.words import size_in_words

_CHUNK_BYTES = MIB
_BROKEN = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError, struct.error, ValueError)
"""What zipfile and the packers behind it raise for damaged files; RuntimeError for a password."""


@dataclass(frozen=True)
class Limits:
    """What one zip file may hold and how far it may swell; beyond that nothing of it is unpacked."""

    files: int = 20_000
    file_bytes: int = 512 * MIB
    all_bytes: int = 16 * GIB
    harmless_bytes: int = 256 * MIB
    """What may come out of however little: text that repeats itself packs very well."""
    ratio: int = 200
    """Unpacked over packed size beyond that: pictures hardly shrink, bombs do."""
    spare_bytes: int = 512 * MIB
    """Left free on the disk."""


class RefusedArchiveError(Exception):
    """A zip file that is not unpacked at all; the message is the reason, without the file's name."""


def unpack(archive: Path, target: Path, limits: Limits | None = None) -> tuple[list[Path], dict[str, str]]:
    """Unpack a zip file below `target`; returns the files, and by name why others were left out.

    A file in it that is damaged or has a password is left out alone. A single folder around everything is taken away,
    unless its name means repeats (`10_name`). Raises RefusedArchiveError for what is no zip file, holds nothing that
    can be unpacked, or goes beyond the limits; what it unpacked is gone.
    """
    limits = limits or Limits()
    try:
        with zipfile.ZipFile(archive) as opened:
            # Not `is_dir()`: that fails on an entry without a name.
            entries = [entry for entry in opened.infolist() if not entry.filename.endswith("/")]
            _refuse_too_much(entries, target, limits)
            refused: dict[str, str] = {}
            wanted = list(_wanted(entries, refused))
            top = _common_top([parts for _, parts in wanted])
            files, left = [], limits.all_bytes
            for entry, parts in wanted:
                path = target.joinpath(*parts[1:] if top else parts)
                if path.exists():
                    refused[entry.filename] = "its name is twice in the zip file"
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    left -= _write(opened, entry, path, min(limits.file_bytes, left))
                except _BROKEN as error:
                    path.unlink(missing_ok=True)
                    if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
                        raise
                    refused[entry.filename] = _reason(error)
                else:
                    files.append(path)
            if refused and not files:
                raise RefusedArchiveError(f"nothing in it can be unpacked: {next(iter(refused.values()))}")
            return files, refused
    except _BROKEN as error:
        shutil.rmtree(target, ignore_errors=True)
        raise RefusedArchiveError(_reason(error)) from error
    except RefusedArchiveError:
        shutil.rmtree(target, ignore_errors=True)
        raise


def safe_parts(name: str) -> tuple[str, ...] | None:
    """A name in an archive as clean folder and file names; None when it leads elsewhere, empty for what is hidden."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or ".." in parts or (parts and len(parts[0]) == 2 and parts[0][1] == ":"):
        return None
    if not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return ()
    cleaned = tuple(clean_part(part) for part in parts)
    return cleaned if all(cleaned) else None


def _refuse_too_much(entries: list[zipfile.ZipInfo], target: Path, limits: Limits) -> None:
    """Raise RefusedArchiveError by what the zip file says of itself; what it really holds is counted in `_write`."""
    if len(entries) > limits.files:
        raise RefusedArchiveError(f"it holds {len(entries)} files, more than {limits.files}: split it")
    told_bytes = sum(entry.file_size for entry in entries)
    if told_bytes > limits.all_bytes:
        raise RefusedArchiveError(
            f"it unpacks to {size_in_words(told_bytes)}, more than {size_in_words(limits.all_bytes)}: split it"
        )
    packed_bytes = sum(entry.compress_size for entry in entries)
    if told_bytes > limits.harmless_bytes and told_bytes > limits.ratio * max(packed_bytes, 1):
        raise RefusedArchiveError(
            f"it swells from {size_in_words(packed_bytes)} to {size_in_words(told_bytes)}: a decompression bomb?"
        )
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free - limits.spare_bytes
    if told_bytes > free_bytes:
        raise RefusedArchiveError(
            f"it unpacks to {size_in_words(told_bytes)}, but the disk has only {size_in_words(free_bytes)} to spare"
        )


def _wanted(
    entries: list[zipfile.ZipInfo], refused: dict[str, str]
) -> Iterator[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    for entry in entries:
        parts = safe_parts(entry.filename)
        if parts is None:
            refused[entry.filename] = "its name leads out of the folder"
        # The upper half of the attributes is the mode that Unix gave the file.
        elif stat.S_ISLNK(entry.external_attr >> 16):
            refused[entry.filename] = "it is a link"
        elif parts:
            yield entry, parts
        elif _is_somebodys(entry.filename):
            refused[entry.filename] = "it is hidden: a name in its path begins with a dot"


def _is_somebodys(name: str) -> bool:
    """Whether a hidden file is a picture or caption that a person may miss, and none that a system or sdlora made."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    made = any(part == "__MACOSX" or part.startswith(("._", ".sdlora", ".Trash", ".git")) for part in parts)
    return not made and PurePosixPath(name).suffix.lower() in (*IMAGE_SUFFIXES, ".txt")


def _common_top(names: list[tuple[str, ...]]) -> str | None:
    tops = {parts[0] for parts in names}
    if len(tops) != 1 or any(len(parts) == 1 for parts in names):
        return None
    top = tops.pop()
    return None if repeats_folder(Path(top), Path(top)) else top


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, limit_bytes: int) -> int:
    """Unpack one file and return its size, counted as it comes: the size that is told may be a lie."""
    written = 0
    with archive.open(entry) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > limit_bytes:
                raise RefusedArchiveError(f"'{entry.filename}' is larger than {limit_bytes // MIB} MiB")
            target.write(chunk)
    return written


def _reason(error: Exception) -> str:
    if type(error) is RuntimeError:  # an unknown compression is a subclass of it
        return "it has a password: unpack it first"
    with suppress(AttributeError):
        if isinstance(error, OSError) and error.strerror:
            return f"it can't be unpacked: {explain(error)}"
    return f"it is no intact zip file ({error})"
