"""Encoded images and captions on disk: content-addressed, written atomically, shared by runs and processes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora import atomic, disk
from sdlora.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VARIABLE = "SDLORA_CACHE"
_FORMAT = 2
"""Part of every key: a change of how entries are made starts afresh."""
_CHECKSUM = "checksum"
_SHARD = re.compile(r"[0-9a-f]{2}")
# Reading must not write to the disk each time; for pruning, ten minutes are exact enough.
_USE_NOTED_SECONDS = 600.0
# No entry takes an hour to write, so what is older was left by a process that died.
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class CacheSummary:
    """How much a cache holds, or how much was removed from it."""

    folder: Path
    entries: int
    size_bytes: int


@dataclass(frozen=True)
class _Entry:
    path: Path
    size_bytes: int
    last_use: float
    """Seconds since the epoch."""


class Cache:
    """Named tensors by key, one safetensors file each, in `<folder>/<first two digits>/<key>.safetensors`.

    A file is written beside its place and moved there in one go, so readers see all of it or nothing, and two
    processes that encode the same key do the work twice but harm nothing. Every file holds a checksum of its key and
    tensors; a damaged one counts as absent, and `on_damage` is told. The file's modification time says when it was last
    used.
    """

    def __init__(self, folder: Path, on_damage: Callable[[str], None] = lambda message: None) -> None:
        """on_damage: called with a sentence for each entry that was there and can't be used."""
        self.folder = folder
        self._on_damage = on_damage

    def key(self, parts: Mapping[str, str | int | float]) -> str:
        """The name of what `parts` determine: 64 hex digits, the same in any order, on any machine."""
        text = json.dumps({"format": _FORMAT, **parts}, sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry, which may yet turn out to be damaged."""
        return self._path(key).is_file()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors (on the CPU) kept under the key, or None when absent or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            tensors: dict[str, Tensor] = load(content)
            # A header can be longer than 4 GiB only in a file that is no entry of ours.
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            kept = header["__metadata__"][_CHECKSUM]
        except (SafetensorError, ValueError, KeyError, TypeError):
            kept, tensors = "", {}
        if kept != _checksum(key, tensors):
            self._on_damage(f"the cache entry {path} is damaged, so it is made anew")
            return None
        with suppress(OSError):  # a read-only cache still serves
            if time.time() - path.stat().st_mtime > _USE_NOTED_SECONDS:
                os.utime(path)
        return tensors

    def get_or_encode(self, key: str, encode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors kept under the key; when absent, `encode()` makes them and they are kept.

        Returns them on the CPU, equal to the last bit whether kept or fresh. Raises DataError when they can't be
        written.
        """
        kept = self.get(key)
        return self.put(key, encode()) if kept is None else kept

    def put(self, key: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep the tensors under the key, replacing what is there; returns them as `get` would.

        Raises DataError when they can't be written.
        """
        from safetensors.torch import save

        # What is returned is what a later run will read, so that a fresh cache and a filled one train the same.
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        path = self._path(key)
        try:
            self._write(path, save(plain, {_CHECKSUM: _checksum(key, plain)}))
        except OSError as error:
            if isinstance(error, PermissionError) and path.exists():
                return plain  # Windows, while another process reads the same entry, which has the same content
            raise DataError(
                f"can't write to the cache folder {self.folder}: {disk.explain(error, path)}. Free some space (`sdlora "
                "cache`), set images.cache_folder to another place, or images.cache=false"
            ) from error
        return plain

    def summary(self) -> CacheSummary:
        """How many entries there are and how large they are."""
        entries = list(self._entries())
        return CacheSummary(self.folder, len(entries), sum(entry.size_bytes for entry in entries))

    def prune(self, *, max_bytes: int | None = None, older_than: timedelta | None = None) -> CacheSummary:
        """Remove entries not used for `older_than`, then the least recently used ones beyond `max_bytes` in all.

        Returns what was removed. Leftovers of interrupted writes go too.
        """
        for shard in self._shards():
            for path in _inside(shard, atomic.TEMPORARY_SUFFIX):
                with suppress(FileNotFoundError):  # its writer has just moved it
                    if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                        path.unlink()
        # Least recently used first, told by the file's own time: no index that could go stale.
        entries = sorted(self._entries(), key=lambda entry: entry.last_use)
        oldest_kept = time.time() - older_than.total_seconds() if older_than is not None else float("-inf")
        total_bytes = sum(entry.size_bytes for entry in entries)
        removed = removed_bytes = 0
        for entry in entries:
            too_many = max_bytes is not None and total_bytes - removed_bytes > max_bytes
            # In the order of their last use: where one may stay, all after it do.
            if entry.last_use >= oldest_kept and not too_many:
                break
            entry.path.unlink(missing_ok=True)
            removed += 1
            removed_bytes += entry.size_bytes
        return CacheSummary(self.folder, removed, removed_bytes)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _write(self, path: Path, content: bytes) -> None:
        for is_last in (False, False, True):
            try:
                # A file that a power cut left too short is damaged, so absent: not worth waiting 6 ms for each image.
                atomic.write_bytes(path, content, parents=True, durable=False)
                return
            except (FileNotFoundError, FileExistsError):  # somebody deletes the folder at this moment
                if is_last:
                    raise

    def _shards(self) -> list[Path]:
        return [path for path in _inside(self.folder) if _SHARD.fullmatch(path.name) and path.is_dir()]

    def _entries(self) -> Iterator[_Entry]:
        for shard in self._shards():
            for path in _inside(shard, ".safetensors"):
                try:
                    status = path.stat()
                except FileNotFoundError:  # another process removed it meanwhile
                    continue
                yield _Entry(path, status.st_size, status.st_mtime)


def _inside(folder: Path, suffix: str = "") -> list[Path]:
    """What lies in a folder; nothing where it was never made, or somebody deletes it just now."""
    try:
        return [path for path in folder.iterdir() if path.name.endswith(suffix)]
    except FileNotFoundError:
        return []


def default_cache_folder() -> Path:
    """The user's cache folder: $SDLORA_CACHE, or `sdlora` where this platform keeps caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "sdlora" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sdlora"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sdlora"


def _checksum(key: str, tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2 over an entry's key and its tensors' names, types, shapes and bytes."""
    import torch

    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        # As bytes, since numpy knows no bf16.
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
