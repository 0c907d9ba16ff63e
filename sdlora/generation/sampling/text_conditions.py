"""A batch's prompts, step by step, to what the UNet is given: shared by generated images and previews.

Shapes: B images, K prompts joined by AND.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from sdlora.generation.request.prompt_schedule import PromptSchedule, SubPrompt, schedule
from sdlora.generation.sampling.adapted_base import AdapterSet
from sdlora.generation.sampling.denoising import Conditions
from sdlora.generation.sampling.texts import Texts
from sdlora.models.bundle import TextStates
from sdlora.models.size_conditions import SizeConditions

ConditionsAt = Callable[[int, int], Conditions]
"""What holds at a step (from 0) of how many."""


@dataclass(frozen=True)
class RowTexts:
    """One image's prompts and how it is guided by them."""

    prompts: PromptSchedule
    negatives: PromptSchedule
    guidance: float
    rescale: float = 0.0

    @classmethod
    def of(cls, prompt: str, negative: str, steps: int, guidance: float, rescale: float = 0.0) -> RowTexts:
        """The texts of a request. AND joins prompts only, as in AUTOMATIC1111's web UI."""
        return cls(schedule(prompt, steps), schedule(negative, steps, combine=False), guidance, rescale)

    @property
    def texts(self) -> list[str]:
        """Every text that comes up at any step, prompts and negative ones, each once: what has to be encoded."""
        return list(dict.fromkeys([*_texts_in(self.prompts), *_texts_in(self.negatives)]))

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt has an effect; without, one UNet call an image does."""
        return self.guidance != 1 or any(part.weight != 1 for part in self.prompts.prompts[0]) or self.num_prompts > 1

    @property
    def num_prompts(self) -> int:
        """Prompts joined by AND; 1 without it."""
        return self.prompts.num_prompts


class TextConditions:
    """The text states of a batch, encoded before its first step. All rows have the same number of prompts."""

    def __init__(self, texts: Texts, rows: Sequence[RowTexts], sets: Sequence[AdapterSet]) -> None:
        self._rows = rows
        self.is_guided = any(row.is_guided for row in rows)
        self._states: dict[tuple[int, str, bool], TextStates] = {}
        """By row, text and whether it is a negative prompt."""
        for index, (row, own) in enumerate(zip(rows, sets, strict=True)):
            for text in _texts_in(row.prompts):
                (self._states[index, text, False],) = texts.conditional([text], [own])
            for text in _texts_in(row.negatives) if self.is_guided else ():
                (self._states[index, text, True],) = texts.unconditional([text], [own])
        # Everything is encoded before the first step: encoding takes the adapters off, which then would be missing.
        self._empty = texts.empty()
        self._longest = max(states.states_BTD.shape[1] for states in self._states.values())

    @property
    def copies(self) -> int:
        """Rows of a UNet call for each image: one a prompt joined by AND, and one for the negative prompt if guided."""
        return self._rows[0].num_prompts + (1 if self.is_guided else 0)

    def at_size(self, size: SizeConditions, device: torch.device, *, one_by_one: bool = False) -> ConditionsAt:
        """What holds at each step for images of one size."""
        guidance_B = torch.tensor([row.guidance for row in self._rows], device=device)
        rescale_B = torch.tensor([row.rescale for row in self._rows])

        @cache  # by the texts of a step: those of most prompts never change
        def of_texts(prompts: tuple[tuple[SubPrompt, ...], ...], negatives: tuple[str, ...]) -> Conditions:
            numbers = range(self._rows[0].num_prompts)
            return Conditions(
                tuple(self._joined([own[number].text for own in prompts], negative=False) for number in numbers),
                torch.tensor([[own[number].weight for own in prompts] for number in numbers]),
                self._joined(negatives, negative=True) if self.is_guided else None,
                guidance_B,
                rescale_B,
                size,
                one_by_one,
            )

        def at(index: int, total: int) -> Conditions:
            return of_texts(
                tuple(row.prompts.at(index, total) for row in self._rows),
                tuple(row.negatives.at(index, total)[0].text for row in self._rows),
            )

        return at

    def _joined(self, texts: Sequence[str], *, negative: bool) -> TextStates:
        states = [self._states[row, text, negative] for row, text in enumerate(texts)]
        return Texts.joined(states, self._longest, self._empty)


def _texts_in(prompts: PromptSchedule) -> list[str]:
    return list(dict.fromkeys(part.text for parts in prompts.distinct for part in parts))
