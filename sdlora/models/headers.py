"""What a weight file holds, read from its header alone: names, shapes, metadata. Milliseconds, no weights."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdlora.errors import ModelError

_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


@dataclass(frozen=True)
class Header:
    """Names and shapes of a file's tensors, and its metadata (empty for .ckpt)."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)

    def has(self, prefix: str) -> bool:
        """Whether any name begins with `prefix`."""
        return any(name.startswith(prefix) for name in self.shapes)


def read_header(path: Path) -> Header:
    """The header of a .safetensors or .ckpt file. Raises ModelError when it can't be read."""
    if path.suffix.lower() == ".safetensors":
        return _safetensors_header(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in read_pickled(path).items()}
    return Header(path, shapes)


def _safetensors_header(path: Path) -> Header:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _LARGEST_HEADER:
            raise ModelError(f"{path}: not a safetensors file (its header would be {length} bytes long)")
        try:
            entries: dict[str, Any] = json.loads(file.read(length))
            metadata = entries.pop("__metadata__", {})
            shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: not a safetensors file (its header can't be read: {error})") from error
    expected, size = 8 + length + end, path.stat().st_size
    if size < expected:
        raise ModelError(f"{path}: incomplete, {size:,} of {expected:,} bytes are there; download or copy it again")
    return Header(path, shapes, metadata)


def file_tensor_hash(path: Path) -> str:
    """sha256 of all bytes behind a .safetensors file's header: kohya's sshs_model_hash. Holds 1 MiB at a time."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_pickled(path: Path) -> dict[str, Any]:
    """The tensors of a .ckpt file, mapped from disk where its format allows; nothing in it is executed."""
    import torch

    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):  # files from before PyTorch 1.6 can't be mapped
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than plain tensors, and loading it could run code; it is not opened. "
            "Convert it to .safetensors with a tool you trust, or get that version of the model."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise ModelError(f"{path}: can't be read as a checkpoint: {error}") from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise ModelError(f"{path}: holds no tensors")
    return tensors


def read_tensor(path: Path, name: str) -> Any:
    """One tensor of a file, on the CPU."""
    if path.suffix.lower() != ".safetensors":
        return read_pickled(path)[name]
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
