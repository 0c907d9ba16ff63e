"""What a dataset tells of the training it is for: a name, the word that calls it up, prompts to watch it by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.data.lint.tags import tags_of
from sdlora.data.sets import listing

SHARED_BY = 0.9
"""Share of the captions that begin with a tag for it to count as the trigger."""
_PROMPTS = 3


@dataclass(frozen=True)
class Suggestion:
    """Settings to begin with; empty where the dataset doesn't tell."""

    name: str
    trigger: str
    prompts: tuple[str, ...]


def suggest(folder: Path) -> Suggestion:
    """Settings for a dataset, from its name and captions."""
    items = [item for item in listing.read(folder) if item.trained]
    name = re.sub(r"[^\w.+-]+", "-", folder.name).strip("-.") or "my-lora"
    spread = items[:: max(1, len(items) // _PROMPTS)][:_PROMPTS]
    prompts = (" ".join(item.trained.split()) for item in spread)
    tags = [tags_of(item.trained, listing.CAPTIONS) for item in items]
    return Suggestion(name, _trigger(tags), tuple(dict.fromkeys(prompts)))


def _trigger(tags: Sequence[Sequence[str]]) -> str:
    """The tag with which nearly all captions begin."""
    first = Counter(each[0] for each in tags if each)
    tag, times = next(iter(first.most_common(1)), ("", 0))
    return tag if len(tags) > 1 and times >= SHARED_BY * len(tags) else ""
