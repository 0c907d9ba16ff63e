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
from typing import TYPE_CHECKING

from sdlora.constants import MIB
from sdlora.file_memory import FileMemory

if TYPE_CHECKING:
    from torch import nn

_SAMPLED = 64


def weights_identity(modules: Iterable[nn.Module], *extra: str | int) -> str:
    """32 hex digits that name the modules' weights in their present number type; `extra` goes into the hash."""
    import torch  # here alone: hashes of files are asked for where no model is loaded

    digest = hashlib.sha256(json.dumps(extra).encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            flat = tensor.reshape(-1)
            # Start, middle and end: fine-tunings that leave some rows alone still change one of them.
            middle = max(0, (len(flat) - _SAMPLED) // 2)
            samples = torch.cat([flat[:_SAMPLED], flat[middle : middle + _SAMPLED], flat[-_SAMPLED:]])
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(samples.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def file_hash(path: Path, cache_folder: Path) -> str:
    """The sha256 of a whole file in hex; seconds for gigabytes, so it is remembered until the file changes."""
    memory = FileMemory(cache_folder / "file-hashes.json", version=1)
    found: str = memory.get(path, lambda: sha256_of(path))
    memory.save(keep_others=True)
    return found


def sha256_of(path: Path) -> str:
    """The sha256 of a whole file in hex. Its first ten letters are the AutoV2 hash of model sites."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()
