"""What is trained as files for other tools: the adapter's, and one for each new token beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapters.files.embedding_writing import bundled_tensors, write_embedding
from sdlora.adapters.files.embeddings import read_embedding, token_of
from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.writing import write_adapter
from sdlora.adapters.live.attach import Adapter
from sdlora.adapters.live.self_test import self_test
from sdlora.config.outputs import OutputsConfig
from sdlora.errors import AdapterError
from sdlora.models.bundle import Bundle
from sdlora.runs.folder import embedding_files, result_file


def export(
    path: Path, adapter: Adapter, facts: TrainingFacts, outputs: OutputsConfig
) -> tuple[list[Path], tuple[str, ...]]:
    """Write the adapter to `path`, and its embeddings beside it; without layers there are embeddings only.

    Returns the files, the one that stands for all first, and warnings. Raises AdapterError.
    """
    vectors = adapter.tokens.vectors if adapter.tokens is not None else {}
    warnings: tuple[str, ...] = ()
    written = [result_file(path, adapter.config)]
    if adapter.config.rank:
        bundle = [bundled_tensors(token, own) for token, own in vectors.items()] if outputs.bundle_embeddings else []
        warnings = write_adapter(
            path,
            adapter.module_weights(),
            facts,
            file_format=outputs.format,
            precision=outputs.precision,
            private=outputs.metadata == "private",
            bundle={name: tensor for tensors in bundle for name, tensor in tensors.items()},
        ).warnings
    for token, file in embedding_files(path, vectors).items():
        write_embedding(file, token, vectors[token], facts, outputs.format)
        written.append(file)
    return list(dict.fromkeys(written)), warnings


def prove(files: Sequence[Path], adapter: Adapter, load_base: Callable[[], Bundle]) -> str:
    """Compare files that `export` wrote with what is trained; returns what was found, in words.

    load_base: as for `self_test`. Raises AdapterError where they differ.
    """
    said = [self_test(adapter, files[0], load_base).summary()] if adapter.config.rank else []
    vectors = adapter.tokens.vectors if adapter.tokens is not None else {}
    by_token = {token_of(file): file for file in files}
    for token, own in vectors.items():
        _compare_vectors(by_token.get(token), token, own)
        said.append(f"{len(own[0])} vectors of {token} read back as they are")
    return "; ".join(said)


def _compare_vectors(file: Path | None, token: str, own: Sequence[Tensor]) -> None:
    if file is None:
        raise AdapterError(f"self-test: no file tells that it holds {token}")
    read = read_embedding(file).for_widths([one.shape[1] for one in own])
    if not all(torch.equal(one, trained.detach().cpu()) for one, trained in zip(read, own, strict=True)):
        raise AdapterError(f"self-test: {file.name} does not hold the vectors that were trained for {token}")
