"""New tokens in training: their vectors as parameters, where they start, and what keeps them near the vocabulary.

Shapes: R vectors of a token, D width of a text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdlora.adapters.files.embeddings import Embedding
from sdlora.config.adapter import NewTokenConfig
from sdlora.errors import AdapterError
from sdlora.models.bundle import Bundle
from sdlora.models.new_tokens import NewTokens
from sdlora.models.prompts import token_numbers
from sdlora.words import count

_NOISE = 0.1
"""Of vectors that start alike, as a share of their own spread: by gradients alone they would stay alike."""
_PULL = 0.1
"""How far a step draws the spread of a vector to the vocabulary's, as an exponent of their ratio."""


@dataclass(frozen=True)
class TrainedTokens:
    """Tokens with their trained vectors [R, D], one parameter for each text encoder, in fp32."""

    words: NewTokens
    """The same to the text encoders."""
    vectors: Mapping[str, tuple[nn.Parameter, ...]]
    """By token as it is written."""
    start: Mapping[str, tuple[Tensor, ...]]
    """Vectors of the init words, which are what the tokens mean to the base model."""
    spreads: tuple[float, ...]
    """Standard deviation of each text encoder's table of vectors."""

    @torch.no_grad()
    def keep_spread(self, others: Callable[[nn.Parameter], Iterable[Tensor]] = lambda _: ()) -> None:
        """Draw the spread of each vector to the vocabulary's, by a tenth of the way (in logarithms).

        Training lets the vectors grow far beyond those that the encoder has seen, and then they drown the rest of the
        caption. As published trainers of pivotal tuning have it: v <- v (std of the vocabulary / std of v)^0.1.
        others: tensors of an optimizer that stand for the same weights and so must follow.
        """
        for parameters in self.vectors.values():
            for parameter, spread in zip(parameters, self.spreads, strict=True):
                own_R1 = parameter.std(dim=1, keepdim=True).clamp(min=1e-12)
                factor_R1 = (spread / own_R1) ** _PULL
                for tensor in (parameter, *others(parameter)):
                    tensor.mul_(factor_R1.to(tensor))


def start_tokens(
    bundle: Bundle,
    configs: Mapping[str, NewTokenConfig],
    *,
    seed: int,
    trained: Mapping[str, Embedding] | None = None,
) -> TrainedTokens:
    """Put new tokens into a bundle, with vectors of their init words; nothing of its own tables changes.

    seed: of the noise that parts vectors that start alike. trained: embeddings to go on from instead, by token in small
    letters. Raises AdapterError where those have other sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    encoders: list[nn.Module] = list(bundle.text_encoders)
    tables = [encoder.get_input_embeddings().weight.detach() for encoder in encoders]  # type: ignore[operator]
    vectors: dict[str, tuple[nn.Parameter, ...]] = {}
    start: dict[str, tuple[Tensor, ...]] = {}
    for token, config in configs.items():
        rows = [
            _start_rows(table, token_numbers(tokenizer, config.init), config.vectors, generator)
            for table, tokenizer in zip(tables, bundle.tokenizers, strict=True)
        ]
        start[token] = tuple(row_RD.to(table.device) for row_RD, table in zip(rows, tables, strict=True))
        embedding = (trained or {}).get(token.casefold())
        own = rows if embedding is None else _taken_over(token, embedding, rows)
        vectors[token] = tuple(
            nn.Parameter(row_RD.to(table.device, copy=True)) for row_RD, table in zip(own, tables, strict=True)
        )
    words = NewTokens(vectors)
    bundle.new_tokens = words
    return TrainedTokens(words, vectors, start, tuple(float(table.float().std()) for table in tables))


def _taken_over(token: str, embedding: Embedding, rows: list[Tensor]) -> list[Tensor]:
    found = embedding.for_widths([row_RD.shape[1] for row_RD in rows])
    if len(found[0]) != len(rows[0]):
        raise AdapterError(f"adapter.start_from: {other_length(token, len(found[0]), len(rows[0]))}")
    return found


def other_length(token: str, trained: int, wanted: int) -> str:
    """What is said of a token that is to go on with another number of vectors than it was trained with."""
    return (
        f"{token} was trained with {count(trained, 'vector')}, here it has {wanted}: set vectors of adapter.new_tokens "
        f"to {trained}"
    )


def _start_rows(table: Tensor, numbers: list[int], wanted: int | None, generator: torch.Generator) -> Tensor:
    """The init words' vectors in fp32, again from the first where there are fewer than wanted."""
    chosen = list(_repeated(numbers, wanted or len(numbers)))
    rows_RD = table[torch.tensor([number for number, _ in chosen], device=table.device)].float().cpu()
    noise_RD = torch.randn(rows_RD.shape, generator=generator) * rows_RD.std(dim=1, keepdim=True)
    again_R1 = torch.tensor([[float(is_again)] for _, is_again in chosen])
    return rows_RD + _NOISE * again_R1 * noise_RD


def _repeated(numbers: list[int], wanted: int) -> Iterator[tuple[int, bool]]:
    """Token numbers, over and over, and whether each has come up before."""
    seen: set[int] = set()
    for index in range(wanted):
        number = numbers[index % len(numbers)]
        yield number, number in seen
        seen.add(number)
