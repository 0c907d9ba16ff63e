"""Several characters in one adapter: whether one's trigger brings what only another's was trained to bring.

Each trigger is asked for in the same new scenes and seeds. What another trigger's images are like is told by likeness
to the training images of that one, above what the base model reaches without any trigger: 100% is what its own trigger
brings. Characters that are drawn alike share some of it rightly, so the same is taken of the training images, and only
what is surely above that has leaked.

Legend: N images, M training images, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.config.evaluate import CharactersConfig
from sdlora.data.captions import has_trigger
from sdlora.data.images import ImageRecord
from sdlora.data.planning import triggers
from sdlora.errors import ConfigError
from sdlora.evaluation import scores
from sdlora.evaluation.plan import EvaluatedPrompt
from sdlora.evaluation.report import TriggerPair


@dataclass(frozen=True)
class Character:
    """A trigger, and the places of the training images whose captions have it."""

    trigger: str
    places: tuple[int, ...]


def find_characters(config: CharactersConfig, records: Sequence[ImageRecord]) -> list[Character]:
    """The triggers to hold against each other. records: the training images as they are compared.

    Raises ConfigError for fewer than two, and for those that no caption has.
    """
    words = list(config.triggers) or triggers(records)
    if len(words) < 2:
        told = f"the run has one, {words[0]}" if words else "the run has none"
        raise ConfigError(
            "the evaluation",
            [f"characters: it takes two triggers or more, and {told}; name them in characters.triggers"],
        )
    found = [Character(word, tuple(place for place, one in enumerate(records) if _has(one, word))) for word in words]
    if absent := [one.trigger for one in found if not one.places]:
        raise ConfigError("the evaluation", [f"characters.triggers: no caption has {word}" for word in absent])
    return found


def _has(record: ImageRecord, trigger: str) -> bool:
    return record.captions.trigger == trigger or has_trigger(record.plain_caption(), trigger)


def prompts_of(trigger: str, asked: Sequence[EvaluatedPrompt]) -> list[EvaluatedPrompt]:
    """The same scenes with this trigger."""
    return [EvaluatedPrompt(one.kind, ", ".join(filter(None, [trigger, one.bare])), one.bare) for one in asked]


def compare(
    characters: Sequence[Character], base_ND: Tensor, by_trigger: Mapping[str, Tensor], training_MD: Tensor
) -> list[TriggerPair]:
    """Every trigger asked for, against every other one's training images."""
    found = []
    for asked in characters:
        for other in characters:
            if other is asked:
                continue
            theirs_MD, own_MD = training_MD[list(other.places)], training_MD[list(asked.places)]
            kinds = (base_ND, by_trigger[asked.trigger], by_trigger[other.trigger])
            base_N, asked_N, other_N = (scores.likenesses(each, theirs_MD) for each in kinds)
            brought = scores.share_of_likeness(asked_N, other_N, base_N)
            alike = _alike(own_MD, theirs_MD, float(base_N.mean()))
            found.append(TriggerPair(asked.trigger, other.trigger, brought, alike))
    return found


def _alike(own_MD: Tensor, theirs_MD: Tensor, base: float) -> float | None:
    """How much of what their training images have among themselves these have, too; None with a single one."""
    count = len(theirs_MD)
    if count < 2:
        return None
    cosines_MM = 1 - scores.cosine_distances(theirs_MD, theirs_MD)
    among = float(cosines_MM[~torch.eye(count, dtype=torch.bool)].mean())
    return None if among <= base else (scores.likeness(own_MD, theirs_MD) - base) / (among - base)
