"""A grid's axis, and its values as people write them: `1,2,5`, `0:1.2:0.2`, `cat,"a dog, sitting"`. Needs no torch."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from sdlora.config.generate import GenerateConfig

TEXT, REPLACEMENT, FILE, SETTING, CHOICE = range(5)
"""The order in which the axes change a request: prompts, texts in them (then their tags become adapters), files,
settings, and which adapters are used at all."""


@dataclass(frozen=True)
class AxisValue:
    """One value: its label, and how it changes a request (raises ConfigError where it can't)."""

    label: str
    apply: Callable[[GenerateConfig], GenerateConfig]


@dataclass(frozen=True)
class Axis:
    """What is varied. `spec` is the text it was read from, `stage` when its change is made.

    changes: the settings that are other ones with its values, by which two axes that can't go together are found.
    """

    spec: str
    title: str
    stage: int
    values: tuple[AxisValue, ...]
    changes: frozenset[str]
    replaced: tuple[str, ...] = ()
    """What is looked for in the prompts, and what takes its place."""

    def overruled_by(self, other: Axis) -> str | None:
        """What both axes change, in words; None where they go together."""
        if shared := self.changes & other.changes:
            return f"{' and '.join(sorted(shared))} {'is' if len(shared) == 1 else 'are'}"
        for searched, texts in ((self.replaced[:1], other.replaced), (other.replaced[:1], self.replaced)):
            if found := next((one for one in searched if any(one in text for text in texts)), None):
                return f"'{found}' in the prompts is"
        return None


_MOST_VALUES = 10_000


def split_values(text: str) -> list[str]:
    """The values between commas; quotes keep commas together, `""` inside them is a quote. Raises ValueError."""
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(f"'{text}' can't be read: {error}") from error
    values = [value.strip() for value in rows[0]] if rows else []
    if not values or not all(values):
        raise ValueError(f"'{text}' has an empty value; write values between commas")
    return values


def expand_numbers(values: list[str]) -> list[str]:
    """The same values with every range `start:end:step` in place of it, end included. Raises ValueError.

    Counted in decimals, so that 0:1:0.1 has eleven values, and 0.3 is 0.3.
    """
    expanded: list[str] = []
    problems: list[str] = []
    for value in values:
        try:
            expanded += _expand(value) if ":" in value else [value]
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return expanded


def _expand(text: str) -> list[str]:
    parts = text.split(":")
    try:
        start, end, step = (Decimal(part.strip()) for part in parts)
    except (ValueError, InvalidOperation):
        raise ValueError(f"'{text}' is no range; write start:end:step, for example 0:1.2:0.2") from None
    if not (start.is_finite() and end.is_finite() and step.is_finite()):
        raise ValueError(f"'{text}' is no range of numbers")
    if step == 0 or (end - start) * step < 0:
        raise ValueError(f"'{text}' never gets from {start} to {end} in steps of {step}")
    count = int((end - start) / step) + 1
    if count > _MOST_VALUES:
        raise ValueError(f"'{text}' has {count:,} values")
    values = [start + step * index for index in range(count)]
    return [f"{value.normalize():f}" if value else "0" for value in values]
