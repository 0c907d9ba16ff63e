"""A grid's axis, and its values as people write them: `1,2,5`, `0:1.2:0.2`, `cat,"a dog, sitting"`. Needs no torch."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from sdlora.config.generate import GenerateConfig

TEXT, FILE, SETTING, CHOICE = range(4)
"""The order in which the axes change a request: prompts (then their tags become adapters), files, settings, and which
adapters are used at all."""


@dataclass(frozen=True)
class AxisValue:
    """One value: its label, and how it changes a request (raises ConfigError where it can't)."""

    label: str
    apply: Callable[[GenerateConfig], GenerateConfig]


@dataclass(frozen=True)
class Axis:
    """What is varied. `spec` is the text it was read from, `stage` when its change is made."""

    spec: str
    title: str
    stage: int
    values: tuple[AxisValue, ...]


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
    for value in values:
        expanded += _expand(value) if ":" in value else [value]
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
