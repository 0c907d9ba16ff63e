"""Safetensors files, distrustfully read and atomically written. Knows tensors and a header, nothing of adapters."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sdlora import atomic
from sdlora.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH_BYTES = 8
_LONGEST_HEADER = 16 * 2**20
"""Far above what any adapter needs; a longer one is an attempt to eat memory."""
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises AdapterError with one clear sentence: no such file, a pickle, a broken or oversized header, truncated data.
    """
    metadata = read_header(path)[1]
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise AdapterError(f"{path.name} is damaged or not a safetensors file: {error}") from error


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by tensor name, and metadata: what a safetensors file tells without being read whole. Loads no torch.

    Checks what the safetensors library leaves out (pickles, the header's length, repeated keys). Raises AdapterError
    with one clear sentence: no such file, a pickle, a broken or oversized header, truncated data.
    """
    refuse_pickle(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        if len(start) < _LENGTH_BYTES:
            raise AdapterError(f"{path.name} is damaged: {size} bytes are too few for a safetensors file")
        (length,) = struct.unpack("<Q", start)
        if length > min(size - _LENGTH_BYTES, _LONGEST_HEADER):
            raise AdapterError(
                f"{path.name} is damaged or not a safetensors file: its header claims {length} of {size} bytes"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name} is damaged: its header can't be read ({error})") from error
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{path.name} is damaged: its header has no table of tensors, or metadata that is not text")
    return _shapes(path.name, header, size - _LENGTH_BYTES - length), metadata


def refuse_pickle(path: Path) -> None:
    """Raise AdapterError when a file isn't there or, by its name or first bytes, is a pickle."""
    if not path.is_file():
        raise AdapterError(f"{path}: there is no such file")
    try:
        with path.open("rb") as stream:
            start = stream.read(_LENGTH_BYTES + 1)
    except OSError as error:
        raise AdapterError(f"{path} can't be opened: {error.strerror or error}") from error
    # a header of 640 bytes begins like a pickle, so what follows the length counts too
    looks_pickled = start.startswith(_PICKLE_STARTS) and start[_LENGTH_BYTES:] != b"{"
    if path.suffix.lower() in _PICKLE_SUFFIXES or looks_pickled:
        raise AdapterError(
            f"{path.name} is a pickle: opening one can run any program hidden in it, so only .safetensors files are "
            "read. Convert it with the tool that made it."
        )


def _shapes(name: str, header: Mapping[str, Any], num_bytes: int) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name; raises AdapterError for a table that makes no sense or wants more bytes than there are."""
    try:
        shapes = {key: tuple(int(edge) for edge in entry["shape"]) for key, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        told = f"{name} is damaged or not a safetensors file: its table of tensors makes no sense ({error!r})"
        raise AdapterError(told) from error
    if end > num_bytes:
        raise AdapterError(
            f"{name} is damaged or not a safetensors file: {end - num_bytes} bytes are missing at its end; copy or "
            "download it again"
        )
    return shapes


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands in it twice")
    return table


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file as bytes, the same for the same input: the library alone writes metadata in random order."""
    import safetensors.torch

    data = safetensors.torch.save(dict(tensors), dict(metadata))
    (length,) = struct.unpack("<Q", data[:_LENGTH_BYTES])
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    ordered = {"__metadata__": header.pop("__metadata__"), **header}
    raw = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _LENGTH_BYTES)
    return struct.pack("<Q", len(raw)) + raw + data[_LENGTH_BYTES + length :]


def tensor_hash(data: bytes) -> str:
    """sha256 of all bytes behind the header: kohya's sshs_model_hash, A1111's "addnet" hash; first 12: AutoV3."""
    (length,) = struct.unpack("<Q", data[:_LENGTH_BYTES])
    return hashlib.sha256(memoryview(data)[_LENGTH_BYTES + length :]).hexdigest()


def legacy_hash(data: bytes) -> str:
    """kohya's sshs_legacy_hash: 8 hex of sha256 over bytes 0x100000 to 0x110000 (of nothing in smaller files)."""
    return hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]


def refuse_overwriting(path: Path, force: bool) -> None:
    """Raise AdapterError when there is something at `path` already, unless `force`; ask before long work."""
    if path.exists() and not force:
        raise AdapterError(f"{path} exists already; choose another name, or give --force to replace it")


def write_atomically(path: Path, data: bytes) -> None:
    """Put a file in place whole or not at all. Raises AdapterError when the folder can't be written."""
    try:
        atomic.write_bytes(path, data, parents=True)
    except OSError as error:
        raise AdapterError(f"{path} can't be written: {error.strerror or error}") from error
