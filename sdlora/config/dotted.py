"""Settings by dotted name (`adapter.rank`) and nested as a file holds them: the one to the other, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

ABSENT = object()
"""Stands for a setting that one of several doesn't have."""


def flatten(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """A configuration's values by dotted name."""
    values: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            values |= flatten(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name as a YAML file holds them."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def dotted_names(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted name of every value in nested ones."""
    names = []
    for name, value in values.items():
        names += dotted_names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]
    return names


def differing(several: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Each setting that isn't the same in all of several values by dotted name, with its value (or ABSENT) in each."""
    names = dict.fromkeys(name for values in several for name in values)
    rows = [(name, [values.get(name, ABSENT) for values in several]) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]
