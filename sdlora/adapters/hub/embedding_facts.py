"""What a textual-inversion embedding is: its vectors, their norms, and the vocabulary's words nearest to them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdlora.adapters.files.embeddings import Embedding
from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import ModelError
from sdlora.models.loading import load
from sdlora.models.tokenizer import clip_vocabulary
from sdlora.words import first_few

_NEAREST = 3


@dataclass(frozen=True)
class EncoderVectors:
    """The vectors for one text encoder."""

    encoder: str
    number: int
    width: int
    norms: list[float]
    nearest: list[list[str]] | None
    """The nearest words of each vector, by the angle; None without a base model."""


@dataclass(frozen=True)
class EmbeddingFacts:
    """An embedding's description. Everything is plain."""

    name: str
    token: str | None
    """What it was trained as, if its file tells."""
    encoders: tuple[EncoderVectors, ...]
    unused: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """A line for each vector: its norm and, if a model was given, the words nearest to it."""
        also = f", or as {self.token}" if self.token else ""
        lines = [f"{self.name}: a textual-inversion embedding; a prompt uses it as embedding:{self.name}{also}"]
        for one in self.encoders:
            lines.append(f"{one.encoder}  {one.number} vectors of width {one.width}")
            for index, norm in enumerate(one.norms):
                near = "" if one.nearest is None else f", nearest {', '.join(one.nearest[index])}"
                lines.append(f"  {index + 1}: norm {norm:.3f}{near}")
        if self.unused:
            lines.append(
                f"not used  {len(self.unused)} tensors that are no vectors of a word: {first_few(self.unused)}"
            )
        return "\n".join(lines)


def embedding_facts(embedding: Embedding, base: str | None = None) -> EmbeddingFacts:
    """Describe an embedding. base: a model, for the nearest words. Raises AdapterError when it is of another width."""
    tables: dict[str, Tensor] = {}
    if base is not None:
        bundle = load(BaseModelConfig(model=base))
        weights = [encoder.get_input_embeddings().weight for encoder in bundle.text_encoders]
        embedding.for_widths([weight.shape[1] for weight in weights])
        tables = dict(zip(("clip_l", "clip_g"), weights, strict=False))
    words = [word for word, _ in sorted(clip_vocabulary().items(), key=lambda item: item[1])]
    return EmbeddingFacts(
        embedding.name,
        embedding.token,
        tuple(
            EncoderVectors(
                encoder,
                len(vectors),
                vectors.shape[1],
                [float(norm) for norm in vectors.norm(dim=1)],
                _nearest(vectors, tables[encoder], words) if encoder in tables else None,
            )
            for encoder, vectors in embedding.vectors.items()
        ),
        embedding.left_out,
    )


@torch.no_grad()
def _nearest(vectors: Tensor, table: Tensor, words: list[str]) -> list[list[str]]:
    if len(table) < len(words):
        raise ModelError(f"the base model's vocabulary has {len(table)} words, not {len(words)}")
    # Some models have more rows than the vocabulary has words: what was added has no word to show.
    angles = normalize(vectors, dim=1) @ normalize(table[: len(words)].float().cpu(), dim=1).T
    return [[words[number].removesuffix("</w>") for number in row] for row in angles.topk(_NEAREST).indices.tolist()]
