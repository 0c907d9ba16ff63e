"""Captions to the text states that the UNet sees: encoded beforehand and cached, or live."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdlora.config.images import CaptionsConfig
from sdlora.constants import MIB
from sdlora.data.cache import Cache
from sdlora.events import EventStream
from sdlora.models.bundle import Bundle, TextStates, join_text_states
from sdlora.models.prompts import CHUNK_TOKENS
from sdlora.models.text import count_chunks
from sdlora.training.workers import Workers

# Without a cache to read them from again: at most about 1 GiB for SD 1.5 and 2.6 GiB for SDXL, in fp32 and with 75
# tokens a caption.
_KEEP_IN_MEMORY = 4096
_HELD_BYTES = 16 * MIB
"""Text states held in memory where there is a cache."""
_ENCODE_AT_ONCE = 16


class TextSource:
    """Text states of captions.

    live: encode anew at each call, with gradients if the text encoders are trained. Otherwise states come from memory
    or the disk cache, and only what is in neither is encoded.
    """

    def __init__(self, bundle: Bundle, config: CaptionsConfig, cache: Cache | None, *, live: bool) -> None:
        self.live = live
        self._bundle = bundle
        self._config = config
        self._cache = cache
        self._memory: dict[str, TextStates] = {}

    def prepare(self, texts: Sequence[str], events: EventStream, workers: Workers | None = None) -> None:
        """Encode these texts, so that the text encoders can leave the card. Workers divide what is not cached."""
        if self.live:
            return
        # The empty text too: longer captions beside shorter ones need it when the encoders may have left the card.
        todo = list(dict.fromkeys(["", *texts]))
        if self._cache is not None and workers is not None and workers.count > 1:
            for text in todo[workers.index :: workers.count]:
                self.states([text])
            workers.meet()
        for start in range(0, len(todo), _ENCODE_AT_ONCE):
            self.states(todo[start : start + _ENCODE_AT_ONCE])
            events.progress("encoding captions", min(start + _ENCODE_AT_ONCE, len(todo)), len(todo))

    def states(self, texts: Sequence[str], beside: Sequence[str] = ()) -> TextStates:
        """States of texts; shorter ones are filled up with empty chunks.

        beside: texts of the whole batch that these are some of, to whose longest they are filled up as well.
        """
        if self.live:
            return self._encode_beside(texts, beside)
        wanted = list(dict.fromkeys([*texts, *beside]))
        for text in wanted:
            if text not in self._memory:
                self._memory[text] = self._cached(text)
        longest = max(self._memory[text].states_BTD.shape[1] for text in wanted)
        states = join_text_states([self._memory[text] for text in texts], self._empty(), longest)
        # After the batch is joined, or captions of this very batch might be the ones that go.
        while self._holds_too_much():
            self._memory.pop(next(iter(self._memory)))
        return states.to(self._bundle.device)

    def _holds_too_much(self) -> bool:
        if self._cache is None:
            return len(self._memory) > _KEEP_IN_MEMORY
        return sum(states.states_BTD.nbytes for states in self._memory.values()) > _HELD_BYTES

    def _empty(self) -> TextStates:
        """The chunk that shorter captions are filled up with."""
        if "" not in self._memory:
            self._memory[""] = self._cached("")
        return self._memory[""]

    def _cached(self, text: str) -> TextStates:
        if self._cache is None:
            return self._encode_one(text)
        key = self._cache.key(
            {
                "kind": "text states",
                "text": text,
                "encoders": self._bundle.text_identity,
                "precision": str(self._bundle.text_encoders[0].dtype),
                "clip_skip": self._bundle.clip_skip,
                "max_tokens": self._config.max_tokens,
                "weights": self._config.weights,
            }
        )
        tensors = self._cache.get_or_encode(key, lambda: _to_tensors(self._encode_one(text)))
        return TextStates(tensors["states"], tensors.get("pooled"))

    @torch.no_grad()
    def _encode_one(self, text: str) -> TextStates:
        return self._encode([text]).to("cpu")

    def _encode_beside(self, texts: Sequence[str], beside: Sequence[str]) -> TextStates:
        """Encode texts, with the longest of those beside as one more where it makes the others longer."""
        if len(beside) <= len(texts):
            return self._encode(texts)
        most = self._config.max_tokens // CHUNK_TOKENS

        def chunks(text: str) -> int:
            return min(most, count_chunks(self._bundle, text, weights=self._config.weights))

        longest = max(beside, key=chunks)
        if chunks(longest) <= max(map(chunks, texts)):
            return self._encode(texts)
        states = self._encode([*texts, longest])
        pooled_BD = states.pooled_BD
        return TextStates(states.states_BTD[:-1], None if pooled_BD is None else pooled_BD[:-1])

    def _encode(self, texts: Sequence[str]) -> TextStates:
        return self._bundle.family.encode_text(
            self._bundle, list(texts), max_tokens=self._config.max_tokens, weights=self._config.weights
        )


def _to_tensors(states: TextStates) -> dict[str, Tensor]:
    pooled = {} if states.pooled_BD is None else {"pooled": states.pooled_BD}
    return {"states": states.states_BTD, **pooled}
