"""Words that the vocabulary has not: each stands for vectors that go where its tokens would (textual inversion).

Gal et al. 2023. Nothing of the token table changes: a text with such a word is encoded with another token in its place,
whose vector is exchanged behind the table. So the end mark stays the largest number, by which encoders find it.

Vectors are looked up at each use: those that are trained are parameters, which change and take gradients.

Shapes: N chunks, T positions, R vectors of all words, D width of an encoder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Tokenize = Callable[[str], Sequence[int]]
_STAND_IN = 0
_SUFFIXES = r"\.safetensors|\.pt|\.bin"


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Finds the words in a text as the group `word`: bare, or as ComfyUI writes them, `embedding:folder/word.pt`."""
    # The longest first: of `cat` and `cat girl` a text with both words means the second.
    listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    called = r"(?P<called>embedding:(?:[^\s,:()/\\]+[/\\])*)?"
    return re.compile(rf"(?<!\w){called}(?P<word>{listed})(?(called)(?:{_SUFFIXES})?)(?!\w)", re.IGNORECASE)


class NewTokens:
    """Words with their vectors [number, D], for each text encoder of a model."""

    def __init__(self, words: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        self._words = {word.casefold(): tuple(vectors) for word, vectors in (words or {}).items()}
        self._rows: dict[str, list[int]] = {}
        self._pattern: re.Pattern[str] | None = None
        if not self._words:
            return
        start = 0
        for word, vectors in self._words.items():
            # row numbers are negative, so that none is a token's
            self._rows[word] = [-(start + index + 1) for index in range(len(vectors[0]))]
            start += len(vectors[0])
        self._pattern = word_pattern(words or {})

    def numbers(self, tokenize: Tokenize, text: str) -> list[int]:
        """A text's token numbers, with negative ones for the vectors of its new words."""
        if self._pattern is None:
            return list(tokenize(text))
        found: list[int] = []
        position = 0
        for match in self._pattern.finditer(text):
            found += self._tokens(tokenize, text[position : match.start()])
            found += self._rows[match["word"].casefold()]
            position = match.end()
        return found + self._tokens(tokenize, text[position:])

    def words_in(self, text: str) -> list[str]:
        """The new words of a text, in small letters."""
        return [] if self._pattern is None else [match["word"].casefold() for match in self._pattern.finditer(text)]

    def signature(self, text: str) -> tuple[str, ...]:
        """Equal where a text's new words are the same and have the same vectors, as they are now."""
        return tuple(_digest(self._words[word]) for word in self.words_in(text))

    @contextmanager
    def standing_for(self, words: Mapping[str, Sequence[Tensor]]) -> Iterator[None]:
        """Inside, the words stand for other vectors, as many as their own."""
        own = self._words
        self._words = {word: tuple(words.get(word, vectors)) for word, vectors in own.items()}
        try:
            yield
        finally:
            self._words = own

    @contextmanager
    def in_place(self, encoder: Any, index: int, tokens_NT: Tensor) -> Iterator[Tensor]:
        """The tokens to give to a text encoder (the model's `index`-th), whose vectors are exchanged meanwhile."""
        given = [vectors[index] for vectors in self._words.values()]
        if not given:
            yield tokens_NT
            return
        # Vectors pass also where no text has them. To look for them there would be to wait for the card; and trained
        # ones are to have gradients in a batch of other captions alone (caption dropout), as in every other process.
        is_new_NT = tokens_NT < 0

        def exchange(_: Any, __: Any, output_NTD: Tensor) -> Tensor:
            rows_RD = torch.cat([vectors.to(output_NTD) for vectors in given])
            chosen_NTD = rows_RD[(-tokens_NT - 1).clamp(min=0)]
            return torch.where(is_new_NT[..., None], chosen_NTD, output_NTD)

        hook = encoder.get_input_embeddings().register_forward_hook(exchange)
        try:
            yield torch.where(is_new_NT, _STAND_IN, tokens_NT)
        finally:
            hook.remove()

    @staticmethod
    def _tokens(tokenize: Tokenize, text: str) -> list[int]:
        return list(tokenize(text)) if text.strip() else []


def _digest(vectors: Sequence[Tensor]) -> str:
    data = b"".join(one.detach().float().cpu().numpy().tobytes() for one in vectors)
    return hashlib.sha256(data).hexdigest()
