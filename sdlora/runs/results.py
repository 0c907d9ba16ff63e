"""What a run has made so far: adapter files by step, previews by step and prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.runs import checkpoints
from sdlora.runs.folder import RunFolder, by_step

_EMBEDDING_NAME = re.compile(r"_emb(-[\w-]+)?\.safetensors$")
_WORD_ENTRY = "sdlora.new_token"
"""Metadata entry that `adapters.files.embedding_writing` gives such files."""
_HEADER_BYTES = 16384
"""More than the header of a file with a tensor or two takes."""


@dataclass(frozen=True)
class RunAdapterFile:
    """An adapter file of a run, ready to be used."""

    path: Path
    step: int | None
    """Optimizer updates; None for the finished file."""
    is_best: bool
    """Whether it predicts held-out images best of all."""


@dataclass(frozen=True)
class PreviewImage:
    """One picture generated while training; those of one prompt have the same seed."""

    path: Path
    step: int
    prompt_index: int
    prompt: str


@dataclass(frozen=True)
class RunEmbeddingFile:
    """A file with the vectors of a new token."""

    path: Path
    step: int | None
    """Optimizer updates; None for the finished file."""
    token: str


def adapter_files(folder: RunFolder) -> list[RunAdapterFile]:
    """Those of the checkpoints, oldest first, then the finished one if there is one.

    A checkpoint whose state was deleted, to save space, can't be gone on from, but its adapter is as good as before.
    """
    best = checkpoints.best_step(folder)
    return [
        RunAdapterFile(path, step, step is not None and step == best)
        for path, step in _files(folder)
        if _token_in(path) is None
    ]


def embedding_files(folder: RunFolder) -> list[RunEmbeddingFile]:
    """Those of the run's new tokens in the same order."""
    found = [(path, step, _token_in(path)) for path, step in _files(folder)]
    return [RunEmbeddingFile(path, step, token) for path, step, token in found if token is not None]


def preview_images(folder: RunFolder, prompts: Sequence[str] = ()) -> list[PreviewImage]:
    """All previews by step, then by prompt. `prompts` are the run's, in their order."""
    return [
        PreviewImage(path, step, index, prompts[index] if index < len(prompts) else "")
        for step, inside in by_step(folder.path / "previews").items()
        for index, path in sorted((int(path.stem), path) for path in inside.glob("*.png") if path.stem.isdecimal())
    ]


def _files(folder: RunFolder) -> list[tuple[Path, int | None]]:
    """The checkpoints' files with their steps, oldest first, then the finished ones."""
    found: list[tuple[Path, int | None]] = [
        (path, step)
        for step, inside in by_step(folder.checkpoints).items()
        for path in sorted(inside.glob("*.safetensors"))
    ]
    return found + [(path, None) for path in sorted(folder.path.glob("*.safetensors")) if path.is_file()]


def _token_in(path: Path) -> str | None:
    """The token of an embedding file that a run wrote, None for any other file."""
    if _EMBEDDING_NAME.search(path.name) is None:  # a run may be called so, but then its file tells no token
        return None
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError:
        return None
    length = int.from_bytes(start[:8], "little")
    try:
        metadata = json.loads(start[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError):
        return None
    token = metadata.get(_WORD_ENTRY) if isinstance(metadata, dict) else None
    return token if isinstance(token, str) else None
