"""Prompts to the text states of a batch, each caption encoded once under the adapters it is generated with.

Shapes: B images, T text positions, D text width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch

from sdlora.config.base_model import FamilyName
from sdlora.generation.sampling.adapted_base import AdaptedBase, AdapterSet
from sdlora.models.bundle import Bundle, TextStates, join_text_states
from sdlora.models.host import forget_mapped
from sdlora.models.prompts import CHUNK_TOKENS, split_into_chunks, token_numbers

_MOST_TOKENS = 100 * CHUNK_TOKENS
_KEPT = 256
# As diffusers' pipelines do (force_zeros_for_empty_prompt).
_ZEROS_WHEN_EMPTY: tuple[FamilyName, ...] = ("sdxl",)
"""Families whose empty negative prompt is zeros, not the encoded empty text."""


class Texts:
    """Encoded captions; the latest are remembered. adapted: None takes the text encoders as they are."""

    def __init__(self, bundle: Bundle, adapted: AdaptedBase | None) -> None:
        self._bundle = bundle
        self._adapted = adapted
        self._known: OrderedDict[tuple[object, ...], TextStates] = OrderedDict()

    def num_chunks(self, *captions: str) -> int:
        """Chunks that the longest of these captions takes."""
        tokenize = partial(token_numbers, self._bundle.tokenizers[0])
        numbers = partial(self._bundle.new_tokens.numbers, tokenize)
        return max(len(split_into_chunks(numbers, caption)) for caption in captions)

    def conditional(self, captions: Sequence[str], adapters: Sequence[AdapterSet]) -> list[TextStates]:
        """Text states of each caption by itself, as long as it needs."""
        return [self._encoded(caption, own) for caption, own in zip(captions, adapters, strict=True)]

    def unconditional(self, captions: Sequence[str], adapters: Sequence[AdapterSet]) -> list[TextStates]:
        """The same for negative prompts."""
        states = self.conditional(captions, adapters)
        if self._bundle.family.name not in _ZEROS_WHEN_EMPTY:
            return states
        return [one if caption.strip() else _zeros(one) for caption, one in zip(captions, states, strict=True)]

    def empty(self) -> TextStates:
        """Text states of the empty caption, without adapters."""
        return self._encoded("", ())

    @staticmethod
    def joined(states: Sequence[TextStates], longest: int, empty: TextStates) -> TextStates:
        """One batch, each filled up to `longest` positions with chunks of the empty caption."""
        # A row of the wanted length makes join_text_states fill up to it; then it is taken off again.
        filler = TextStates(empty.states_BTD.repeat(1, longest // empty.states_BTD.shape[1], 1), empty.pooled_BD)
        joined = join_text_states([*states, filler], empty)
        pooled = None if joined.pooled_BD is None else joined.pooled_BD[:-1]
        return TextStates(joined.states_BTD[:-1], pooled)

    @torch.no_grad()
    def _encoded(self, caption: str, adapters: AdapterSet) -> TextStates:
        bundle = self._bundle
        relevant = tuple(
            adapter
            for adapter in adapters
            if any(name.startswith("lora_te") for name in (*adapter.loaded.updates, *adapter.loaded.vectors))
        )
        words = bundle.new_tokens.signature(caption)
        key = (caption, bundle.clip_skip, bundle.dtype, words, *(adapter.signature for adapter in relevant))
        if key not in self._known:
            if self._adapted is not None:
                self._adapted.use_for_text(relevant)
            self._known[key] = bundle.family.encode_text(bundle, [caption], _MOST_TOKENS)
            # They rest until the next new prompt, and come from the file again then.
            forget_mapped(weight for encoder in bundle.text_encoders for weight in encoder.parameters())
        self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return self._known[key]


def _zeros(states: TextStates) -> TextStates:
    pooled = None if states.pooled_BD is None else torch.zeros_like(states.pooled_BD)
    return TextStates(torch.zeros_like(states.states_BTD), pooled)
