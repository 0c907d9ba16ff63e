"""Single findings of an evaluation as plain values: what reads a report needs no torch for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["hardest", "never learned", "memorised first", "mislabelled", "unlike the others"]
"""Of trouble with a training image."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Problem:
    """One image's place under one kind of trouble. score: how many robust standard deviations it stands out."""

    kind: Kind
    name: str
    score: float
    sentence: str
