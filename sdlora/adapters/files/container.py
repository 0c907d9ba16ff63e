"""Safetensors files, distrustfully read and atomically written. Knows tensors and a header, nothing of adapters."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from sdlora import atomic, disk
from sdlora.constants import MIB
from sdlora.errors import AdapterError, ModelError
from sdlora.models.headers import (
    LENGTH_BYTES,
    PICKLE_STARTS,
    HarmfulError,
    Header,
    file_tensor_hash,
    looks_like,
    read_header,
    read_pickled,
)
from sdlora.words import wrong_ending

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_HEADER_BYTES = 16 * MIB
"""Far above what any adapter needs; a longer one is an attempt to eat memory."""
_PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}


def is_pickle(path: Path) -> bool:
    """Whether a file is, by its name, one of PyTorch's own, of which only plain tensors are read."""
    return path.suffix.lower() in _PICKLE_SUFFIXES


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, or the tensors of a .pt, .ckpt or .bin file, nothing else of it.

    Raises AdapterError with one clear sentence: no such file, a pickle that holds more than tensors or is called
    .safetensors, a broken or oversized header, truncated data.
    """
    if is_pickle(path):
        return _load_pickle(path), {}
    metadata = adapter_header(path).metadata
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise AdapterError(f"{path.name} is damaged or not a safetensors file: {error}") from error


def content_hash(path: Path) -> str:
    """sha256 of a file's tensors, see `tensor_hash`; of all of a pickle."""
    if not is_pickle(path):
        return file_tensor_hash(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def _load_pickle(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdapterError(f"{path}: there is no such file")
    if what := looks_like(path):
        raise AdapterError(f"{path.name} is {what}")
    try:
        return read_pickled(path)
    except HarmfulError as error:
        raise AdapterError(
            f"{path.name} is a pickle: opening one can run any program hidden in it, so only plain tensors are read, "
            f"and these can't be ({str(error).removeprefix(f'{path}: ')})"
        ) from error
    except ModelError as error:
        raise AdapterError(f"{path.name} {str(error).removeprefix(f'{path}: ')}") from error


def adapter_header(path: Path) -> Header:
    """Shapes by tensor name, and metadata, without reading the tensors. Loads no torch, but for a pickle.

    Raises AdapterError with one clear sentence: no such file, a pickle, a broken or oversized header, truncated data.
    """
    if is_pickle(path):
        return Header(path, {name: tuple(tensor.shape) for name, tensor in _load_pickle(path).items()})
    refuse_pickle(path, "only plain tensors are read, and under its own name: rename it to end in .pt")
    return read_header(path, error=AdapterError, longest=_LONGEST_HEADER_BYTES)


_SAFETENSORS_ONLY = "only .safetensors files are read. Convert it with the tool that made it."


def refuse_pickle(path: Path, instead: str = _SAFETENSORS_ONLY) -> None:
    """Raise AdapterError when a file isn't there or, by its name or first bytes, is a pickle or a zip archive.

    instead: the end of the sentence, what is read of such a file.
    """
    if not path.is_file():
        raise AdapterError(f"{path}: there is no such file")
    try:
        with path.open("rb") as stream:
            start = stream.read(LENGTH_BYTES + 1)
    except OSError as error:
        raise AdapterError(f"{path} can't be opened: {error.strerror or error}") from error
    # a header of 640 bytes begins like a pickle, so what follows the length counts too
    looks_pickled = start.startswith(PICKLE_STARTS) and start[LENGTH_BYTES:] != b"{"
    if looks_pickled and (what := looks_like(path)):
        raise AdapterError(f"{path.name} is {what}")
    if path.suffix.lower() in _PICKLE_SUFFIXES or looks_pickled:
        raise AdapterError(f"{path.name} is a pickle: opening one can run any program hidden in it, so {instead}")


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file as bytes, the same for the same input: the library alone writes metadata in random order."""
    import safetensors.torch

    data = safetensors.torch.save(dict(tensors), dict(metadata))
    (length,) = struct.unpack("<Q", data[:LENGTH_BYTES])
    header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    # The library writes metadata in the order of a hash map, another one in each process: the same adapter would get
    # another hash.
    ordered = {"__metadata__": header.pop("__metadata__"), **header}
    raw = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    # The format wants the data to begin at a multiple of 8; spaces are JSON that means nothing.
    raw += b" " * (-len(raw) % LENGTH_BYTES)
    return struct.pack("<Q", len(raw)) + raw + data[LENGTH_BYTES + length :]


def tensor_hash(data: bytes) -> str:
    """sha256 of all bytes behind the header: kohya's sshs_model_hash, A1111's "addnet" hash; first 12: AutoV3."""
    (length,) = struct.unpack("<Q", data[:LENGTH_BYTES])
    return hashlib.sha256(memoryview(data)[LENGTH_BYTES + length :]).hexdigest()


def legacy_hash(data: bytes) -> str:
    """kohya's sshs_legacy_hash: 8 hex of sha256 over bytes 0x100000 to 0x110000 (of nothing in smaller files)."""
    return hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]


def refuse_target(path: Path, force: bool, suffix: str = ".safetensors") -> None:
    """Raise AdapterError for a new file whose name hasn't the ending, or whose place is taken; ask before long work."""
    if wrong := wrong_ending(path, suffix):
        raise AdapterError(wrong)
    refuse_overwriting(path, force)


def refuse_overwriting(path: Path, force: bool) -> None:
    """Raise AdapterError when there is something at `path` already, unless `force`; ask before long work."""
    if path.exists() and not force:
        raise AdapterError(f"{path} exists already; choose another name, or give --force to replace it")


def write_atomically(path: Path, data: bytes) -> None:
    """Put a file in place whole or not at all. Raises AdapterError when the folder can't be written."""
    try:
        atomic.write_bytes(path, data, parents=True, large=True)
    except OSError as error:
        raise AdapterError(disk.explain(error, path)) from error
