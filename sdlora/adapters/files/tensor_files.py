"""Large safetensors files, one tensor at a time: read one, or copy all while changing some. Memory: one tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from sdlora import atomic, disk
from sdlora.constants import MIB
from sdlora.errors import AdapterError, ModelError
from sdlora.models.dtypes import WEIGHT_DTYPES
from sdlora.models.headers import LENGTH_BYTES, read_header, read_table

_COPIED_BYTES = 16 * MIB


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """A safetensors file by its header. Raises ModelError when it is none, or incomplete."""

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() != ".safetensors":
            raise ModelError(f"{path.name} is no .safetensors file; convert the model to safetensors first")
        self.path = path
        self.metadata = read_header(path).metadata
        self._table, self._data_start = read_table(path)
        self._entries = {
            name: _Entry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in self._table.items()
        }

    def names(self) -> list[str]:
        """Names of all tensors, in the order in which they lie in the file."""
        return sorted(self._entries, key=lambda name: self._entries[name].start)

    def shape(self, name: str) -> torch.Size:
        """Shape of one tensor, by its name in the file."""
        return torch.Size(self._entries[name].shape)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own. Raises ModelError for a number type that is no weight's."""
        with self.path.open("rb") as stream:
            return self._read(stream, name)

    def copy_changed(
        self,
        target: Path,
        change: Mapping[str, Callable[[Tensor], Tensor]],
        metadata: Mapping[str, str],
        on_tensor: Callable[[], None],
    ) -> None:
        """Write the file anew with some tensors changed (same shape and number type), whole or not at all.

        Raises AdapterError: a changed value is not finite in the file's number type, or the disk.
        """
        # The table stays, offsets and all: shapes and number types don't change, so every tensor keeps its place.
        header = {"__metadata__": dict(metadata), **self._table}
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % LENGTH_BYTES)
        try:
            with self.path.open("rb") as source, atomic.writing(target, parents=True, large=True) as out:
                out.write(struct.pack("<Q", len(raw)) + raw)
                # In the order of the data, so that source and target are read and written from front to back.
                for name in self.names():
                    if name in change:
                        out.write(self._changed(source, name, change[name]))
                    else:
                        self._copy(source, out, self._entries[name])
                    on_tensor()
        except OSError as error:
            raise AdapterError(disk.explain(error, target)) from error

    def _read(self, stream: IO[bytes], name: str) -> Tensor:
        entry = self._entries[name]
        if entry.dtype not in WEIGHT_DTYPES:
            raise ModelError(
                f"{self.path.name}: {name} holds numbers of type {entry.dtype}, but a layer's weights can be of "
                f"{', '.join(WEIGHT_DTYPES)}"
            )
        dtype = WEIGHT_DTYPES[entry.dtype]
        if entry.start == entry.end:
            return torch.empty(entry.shape, dtype=dtype)
        data = bytearray(entry.end - entry.start)
        stream.seek(self._data_start + entry.start)
        stream.readinto(data)  # type: ignore[attr-defined]
        return torch.frombuffer(data, dtype=dtype).reshape(entry.shape)

    def _changed(self, stream: IO[bytes], name: str, change: Callable[[Tensor], Tensor]) -> bytes:
        before = self._read(stream, name)
        after = change(before)
        assert after.shape == before.shape
        cast = after.to(before.dtype)
        # A model with one infinite weight generates black images only, so no file is better.
        if not bool(torch.isfinite(cast.float()).all()):
            if not bool(torch.isfinite(before.float()).all()):
                raise AdapterError(f"{self.path.name}: {name} has values that aren't finite: that model is damaged")
            kind = str(before.dtype).removeprefix("torch.")
            raise AdapterError(f"{name} would hold values that {kind} can't; lower the weights of the adapters")
        return cast.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    def _copy(self, source: IO[bytes], out: IO[bytes], entry: _Entry) -> None:
        source.seek(self._data_start + entry.start)
        left = entry.end - entry.start
        while left > 0:
            block = source.read(min(left, _COPIED_BYTES))
            if not block:
                raise OSError(f"{self.path.name} ends too early")
            out.write(block)
            left -= len(block)
