"""Names for weights: quick ones for cache keys, and the full hash that metadata asks for.

A quick identity hashes each tensor's name, shape and number type, and 64 values from its start, middle and end, as
loaded. Any fine-tuning or merge changes practically every value, so it tells models apart without reading gigabytes;
two files with the same weights share it, whatever their layout on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from sdlora import atomic
from sdlora.constants import MIB

_SAMPLED = 64
_BLOCK = MIB


def weights_identity(modules: Iterable[nn.Module], *extra: str | int) -> str:
    """32 hex digits that name the modules' weights in their present number type; `extra` goes into the hash."""
    digest = hashlib.sha256(json.dumps(extra).encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            flat = tensor.reshape(-1)
            middle = max(0, (len(flat) - _SAMPLED) // 2)
            samples = torch.cat([flat[:_SAMPLED], flat[middle : middle + _SAMPLED], flat[-_SAMPLED:]])
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(samples.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def file_hash(path: Path, cache_folder: Path) -> str:
    """The sha256 of a whole file in hex; seconds for gigabytes, so it is kept by (path, size, time of change)."""
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    kept = cache_folder / "file-hashes" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.txt"
    if kept.is_file() and len(known := kept.read_text(encoding="ascii").strip()) == 64:
        return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    atomic.write_text(kept, digest.hexdigest(), parents=True)
    return digest.hexdigest()
