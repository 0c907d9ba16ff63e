"""Captions to chunks of weighted tokens, in the grammar of AUTOMATIC1111's web UI. Needs no torch.

    (word)        weight x 1.1            [word]       weight / 1.1
    (word:1.3)    weight x 1.3            ((word))     nests: 1.1 x 1.1
    \\( \\) \\[ \\]   the bracket itself      BREAK        fills up the chunk and begins a new one
    \\\\            a backslash             (a backslash before anything else is left out)

A bracket that is never closed still counts, one that was never opened is text. A chunk holds 75 tokens between a start
and an end mark; longer captions take several. (The web UI also moves a word back to the last comma when a chunk ends in
its middle; here words go on in the next chunk.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CHUNK_TOKENS = 75
MAX_TOKENS = 3 * CHUNK_TOKENS

_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENING = {")": "(", "]": "["}
# A stretch of text ends before any B, so that BREAK is tried at each of them.
_PIECES = re.compile(
    r"""\\(?P<escaped>[\\()\[\]])
      | (?P<open>[(\[])
      | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
      | (?P<close>[)\]])
      | (?P<break>\s*\bBREAK\b\s*)
      | (?P<text>[^\\()\[\]:B]+|.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Span:
    """A stretch of text with one weight; `text` is None for a BREAK."""

    text: str | None
    weight: float = 1.0


@dataclass(frozen=True)
class Chunk:
    """Up to 75 token numbers and their weights, without start, end and padding."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


def parse_weights(caption: str) -> list[Span]:
    """The caption cut into spans by weight; brackets are gone, escaped ones are text."""
    spans: list[Span] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def scale(start: int, factor: float) -> None:
        spans[start:] = [Span(span.text, span.weight * factor) for span in spans[start:]]

    for piece in _PIECES.finditer(caption):
        kind, text = piece.lastgroup, piece.group()
        if kind == "open":
            opened[text].append(len(spans))
        elif kind == "weight" and opened["("]:
            scale(opened["("].pop(), float(piece["weight"]))
        elif kind == "close" and opened[_OPENING[text]]:
            scale(opened[_OPENING[text]].pop(), _FACTORS[_OPENING[text]])
        elif kind == "break":
            spans.append(Span(None))
        else:
            spans.append(Span(piece["escaped"] or text.replace("\\", "")))
    for bracket, starts in opened.items():
        for start in starts:
            scale(start, _FACTORS[bracket])
    return _joined(spans)


def literal(text: str) -> str:
    """Text as a prompt spells it when its brackets mean themselves: `saber (fate)` becomes `saber \\(fate\\)`."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def _joined(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last is not None and last.text is not None and span.text is not None and last.weight == span.weight:
            joined[-1] = Span(last.text + span.text, span.weight)
        else:
            joined.append(span)
    return joined


def token_numbers(tokenizer: Any, text: str) -> list[int]:
    """The text's token numbers without start and end marks, from a `tokenizers` or a transformers tokenizer."""
    if callable(tokenizer):
        return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def split_into_chunks(tokenize: Callable[[str], Sequence[int]], caption: str, *, weights: bool = True) -> list[Chunk]:
    """All chunks of a caption, at least one. weights: read the grammar above; off takes every character as text."""
    chunks: list[list[tuple[int, float]]] = [[]]
    for span in parse_weights(caption) if weights else [Span(caption)]:
        if span.text is None:
            chunks.append([])
            continue
        for token in tokenize(span.text):
            if len(chunks[-1]) == CHUNK_TOKENS:
                chunks.append([])
            chunks[-1].append((token, span.weight))
    return [Chunk(tuple(token for token, _ in chunk), tuple(weight for _, weight in chunk)) for chunk in chunks]


def count_tokens(tokenizer: Any, caption: str, *, weights: bool = True) -> int:
    """Tokens that a caption takes up, marks aside; what a BREAK leaves empty counts.

    More than the limit (75, 150 or 225) means that the rest is cut off. tokenizer: from `tokenizer.light_tokenizer`
    (loads no torch) or a bundle's own.
    """
    return count_numbers(lambda text: token_numbers(tokenizer, text), caption, weights=weights)


def count_numbers(tokenize: Callable[[str], Sequence[int]], caption: str, *, weights: bool = True) -> int:
    """The same with a function from a text to its token numbers."""
    chunks = split_into_chunks(tokenize, caption, weights=weights)
    return CHUNK_TOKENS * (len(chunks) - 1) + len(chunks[-1].tokens)
