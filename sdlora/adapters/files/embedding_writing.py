"""Writes trained tokens as textual-inversion files that other tools read, and as parts of an adapter file.

AUTOMATIC1111's and ComfyUI's form: `emb_params` for one text encoder, `clip_l` and `clip_g` for SDXL's two. diffusers'
form, on request: one tensor named by its token; SDXL's two have none there and keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapters.files.container import serialise, tensor_hash, write_atomically
from sdlora.adapters.files.embeddings import BUNDLE_PREFIX, FIRST, ONLY, SECOND, WORD_ENTRY, Embedding
from sdlora.adapters.files.key_names import Format
from sdlora.adapters.files.metadata import TrainingFacts, model_spec
from sdlora.errors import AdapterError


def write_embedding(
    path: Path, token: str, vectors: Sequence[Tensor], facts: TrainingFacts, file_format: Format = "kohya"
) -> None:
    """Write a token's vectors, one tensor [number, D] for each text encoder, in fp32: a few kilobytes at most.

    Raises AdapterError: a value is not finite, the disk.
    """
    tensors = _tensors(token, vectors)
    if file_format == "diffusers" and len(vectors) == 1:
        tensors = {token: tensors[ONLY]}
    own_hash = tensor_hash(serialise(tensors, {}))
    spec = model_spec(replace(facts, trigger=token), own_hash, "textual-inversion")
    write_atomically(path, serialise(tensors, {**spec, WORD_ENTRY: token, "sshs_model_hash": own_hash}))


def bundled_tensors(token: str, vectors: Sequence[Tensor]) -> dict[str, Tensor]:
    """A token's vectors as tensors of an adapter file."""
    return {f"{BUNDLE_PREFIX}{token}.{name}": tensor for name, tensor in _tensors(token, vectors).items()}


def bundled_again(embedding: Embedding) -> dict[str, Tensor]:
    """The same of an embedding that was bundled with another file."""
    names = {FIRST: ONLY} if list(embedding.vectors) == [FIRST] else {}
    return {
        f"{BUNDLE_PREFIX}{embedding.name}.{names.get(slot, slot)}": vectors.contiguous()
        for slot, vectors in embedding.vectors.items()
    }


def _tensors(token: str, vectors: Sequence[Tensor]) -> dict[str, Tensor]:
    if not all(bool(torch.isfinite(one).all()) for one in vectors):
        raise AdapterError(
            f"the vectors of {token} are not finite, so no file is written; go back to an earlier checkpoint and lower "
            "optimization.new_token_learning_rate"
        )
    names = (ONLY,) if len(vectors) == 1 else (FIRST, SECOND)
    return {
        name: one.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, one in zip(names, vectors, strict=True)
    }
