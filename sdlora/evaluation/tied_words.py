"""Words that nearly always stand beside the trigger, and what training has tied together by that.

"zwx fox, red background" under every picture: does the red come along when only the fox is asked for, and does the
background alone bring the fox? Both are told by likeness to the training images that have the word, as a share of what
trigger and word reach together, above what the base model reaches without either.

Legend: N images, M training images, D width of a feature.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from sdlora.config.evaluate import TiedWordsConfig
from sdlora.config.images import CaptionsConfig
from sdlora.data.images import ImageRecord
from sdlora.data.planning import triggers
from sdlora.evaluation import scores
from sdlora.evaluation.plan import EvaluatedPrompt, bare
from sdlora.evaluation.report import TiedWord

_SMALL = re.compile(r"an?|the|of|in|on|at|to|with|and|or|is|are|by|for|from|its|their|photo|picture|image")
_LONGEST = 3
"""Words of a phrase."""


@dataclass(frozen=True)
class Word:
    """A word or phrase to look at, and the places of the training images whose captions have it."""

    word: str
    places: tuple[int, ...]


def find_words(config: TiedWordsConfig, captions: CaptionsConfig, records: Sequence[ImageRecord]) -> list[Word]:
    """The words to look at. records: the training images as they are compared; the trigger doesn't count."""
    texts = [bare(record.plain_caption(), captions, triggers(records)).lower() for record in records]
    words = [" ".join(word.lower().split()) for word in config.words]
    words = words or words_beside(texts, config.share, config.most)
    return [Word(word, tuple(place for place, text in enumerate(texts) if word in text)) for word in words]


def words_beside(texts: Sequence[str], share: float, most: int) -> list[str]:
    """The phrases that stand in at least that share of the texts, the most frequent and longest first.

    Part of a phrase that is named already is not named again.
    """
    counts = Counter(phrase for text in texts for phrase in set(_phrases(text)))
    often = [phrase for phrase, count in counts.items() if count >= share * len(texts)]
    found = []
    for phrase in sorted(often, key=lambda one: (-counts[one], -len(one.split()), one)):
        longer = (other for other in often if other != phrase and counts[other] >= counts[phrase])
        if not any(f" {phrase} " in f" {other} " for other in longer):
            found.append(phrase)
    return found[:most]


def _phrases(text: str) -> Iterator[str]:
    """Runs of up to three words that no comma and no small word comes between."""
    for part in re.split(r"[,.;:\n]", text):
        for is_small, group in groupby(re.findall(r"[\w'-]+", part), key=lambda word: bool(_SMALL.fullmatch(word))):
            run = [] if is_small else list(group)
            for length in range(1, _LONGEST + 1):
                yield from (" ".join(run[start : start + length]) for start in range(len(run) - length + 1))


def prompts_of(word: str, asked: Sequence[EvaluatedPrompt]) -> tuple[list[EvaluatedPrompt], list[EvaluatedPrompt]]:
    """The prompts with the word beside the trigger, and with the word in the trigger's place."""
    together = [EvaluatedPrompt(one.kind, f"{one.prompt}, {word}", one.bare) for one in asked]
    alone = [EvaluatedPrompt(one.kind, f"{word}, {one.bare}", one.bare) for one in asked]
    return together, alone


def compare(
    word: Word, base_ND: Tensor, without_ND: Tensor, together_ND: Tensor, alone_ND: Tensor, training_MD: Tensor
) -> TiedWord:
    """What was found of one word, from features of the same prompts and seeds; the base was asked for neither."""
    share = len(word.places) / len(training_MD)
    if not word.places:
        return TiedWord(word.word, share, None, None)
    own_MD = training_MD[list(word.places)]
    kinds = (base_ND, without_ND, together_ND, alone_ND)
    base_N, without_N, together_N, alone_N = (scores.likenesses(each, own_MD) for each in kinds)
    without, alone = (scores.share_of_likeness(each_N, together_N, base_N) for each_N in (without_N, alone_N))
    return TiedWord(word.word, share, without, alone)
