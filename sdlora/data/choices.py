"""Choices in braces, as prompts and captions have them: the grammar of the Dynamic Prompts extension.

{red|green}           one of them                  {3::red|green}      red three times as often
{2$$red|green|blue}   two of them, "red, blue"     {1-2$$ and $$a|b}   one or two, joined by " and "
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from math import perm

BRACES = re.compile(r"\{([^{}]*)\}")
"""Without braces inside, so that the innermost choice is settled first."""
_COUNT = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?\$\$(?:(.*?)\$\$)?(.*)", re.DOTALL)
_CHANCE = re.compile(r"\s*(\d{1,9}\.?\d*|\.\d+)::(.*)", re.DOTALL)

_VERY_MANY = 1_000_000


@dataclass(frozen=True)
class Choice:
    """What stands between two braces: `low` to `high` of the options, each with its chance, joined."""

    options: tuple[str, ...]
    chances: tuple[float, ...]
    low: int
    high: int
    joint: str

    @property
    def is_plain(self) -> bool:
        """Whether it is one of the options, all alike."""
        return self.low == self.high == 1 and set(self.chances) == {1.0}

    @property
    def num_texts(self) -> int:
        """How many texts may come of it; of very many, some number of very many."""
        total = 0
        for number in self._numbers:
            total += perm(len(self._possible), number)
            if total > _VERY_MANY:
                break
        return total

    def texts(self) -> Iterator[str]:
        """Every text that may come of it."""
        for number in self._numbers:
            yield from map(self.joint.join, permutations(self._possible, number))

    @property
    def _possible(self) -> list[str]:
        return [option for option, chance in zip(self.options, self.chances, strict=True) if chance]

    @property
    def _numbers(self) -> range:
        most = len(self._possible)
        return range(min(self.low, most), min(self.high, most) + 1)

    def draw(self, generator: random.Random) -> str:
        """One text, by its chance."""
        chances, picked = list(self.chances), list[str]()
        for _ in range(min(generator.randint(self.low, self.high), len(self.options))):
            if not any(chances):
                break
            index = generator.choices(range(len(self.options)), chances)[0]
            picked.append(self.options[index])
            chances[index] = 0.0
        return self.joint.join(picked)


def has_choice(text: str) -> bool:
    """Whether there is a choice in it."""
    return any(parse_choice(match[1]) for match in BRACES.finditer(text))


def parse_choice(inside: str) -> Choice | None:
    """The choice that stands between braces; None for anything else, which is text."""
    low = high = 1
    joint = ", "
    if match := _COUNT.fullmatch(inside):
        low, high = sorted((int(match[1]), int(match[2] or match[1])))
        joint = match[3] if match[3] is not None else joint
        inside = match[4]
    elif "|" not in inside:
        return None
    options, chances = [], []
    for option in inside.split("|"):
        weighted = _CHANCE.fullmatch(option)
        options.append((weighted[2] if weighted else option).strip())
        chances.append(float(weighted[1]) if weighted else 1.0)
    return Choice(tuple(options), tuple(chances), low, high, joint)
