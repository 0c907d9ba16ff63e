"""The settings as a schema: what each one is, and values to and fro between dotted names and nested sections.

A dotted name is `section.setting`, in deeper sections `section.section.setting`; behind a setting that is a mapping the
rest of the name is one key of it, dots included: `adapter.block_ranks.unet.mid_block`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ABSENT = object()
"""Stands for a setting that one of several configurations doesn't have."""
_WORDS: Mapping[Any, str] = {str: "text", bool: "true | false", int: "integer", float: "number", Path: "path"}
_BOUNDS = ("ge", "gt", "le", "lt", "multiple_of")


@dataclass(frozen=True)
class Setting:
    """One setting as its declaration has it."""

    name: str
    """Dotted: `adapter.rank`."""
    default: Any
    description: str
    kinds: tuple[Any, ...]
    """The types of value it takes, None apart: int, a Literal, tuple[int, ...], ..."""
    is_optional: bool
    """Whether it may be None, which leaves it to a default that depends on other settings."""
    bounds: Mapping[str, float]
    """ge, gt, le, lt, multiple_of, as far as they are set."""

    @property
    def kind(self) -> str:
        """The types in words: `integer | null`."""
        return " | ".join([*(_in_words(kind) for kind in self.kinds), *(["null"] if self.is_optional else [])])

    @property
    def choices(self) -> tuple[Any, ...]:
        """All values of a setting that takes one of a few, else empty."""
        found: list[Any] = []
        for kind in self.kinds:
            if kind is not bool and typing.get_origin(kind) is not typing.Literal:
                return ()
            found += (True, False) if kind is bool else typing.get_args(kind)
        return tuple(found)

    @property
    def entry(self) -> Any:
        """The type of a list's entries, None if it takes no list, or other things than that type beside it."""
        lists = [kind for kind in self.kinds if typing.get_origin(kind) is tuple]
        entries = {typing.get_args(kind)[0] for kind in lists}
        others = set(self.kinds) - set(lists)
        return entries.pop() if len(entries) == 1 and others <= entries else None

    @property
    def is_number(self) -> bool:
        """Whether a single number is among what it takes."""
        return int in self.kinds or float in self.kinds


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """All settings of a section and the sections in it, in the order in which they are declared."""
    for name, field in model.model_fields.items():
        section = _section_of(field)
        if section is None:
            yield _setting(prefix + name, field)
        else:
            yield from settings(section, f"{prefix}{name}.")


def find(model: type[BaseModel], name: str) -> Setting | None:
    """The setting of a dotted name, if there is one."""
    return next((setting for setting in settings(model) if setting.name == name), None)


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


def nest(values: Mapping[str, Any], model: type[BaseModel] | None = None) -> dict[str, Any]:
    """Values by dotted name as a YAML file holds them; `model` as in `put`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        put(nested, name, value, model)
    return nested


def put(values: dict[str, Any], name: str, value: Any, model: type[BaseModel] | None = None) -> None:
    """Set one dotted name in nested values, in place; `model` tells where a name ends and a mapping's key begins.

    Raises ValueError when a section of the name holds a plain value.
    """
    *sections, last = name.split(".") if model is None else _keys(model, name)
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ValueError(f"'{section}' is a value, not a section")
    inner[last] = value


def single(name: str, value: Any, model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """The settings that a dotted name is given: one, or where it is a section's each of those that the value has."""
    if not isinstance(value, dict) or not is_section(model, name):
        yield name, value
        return
    for key, inner in value.items():
        yield from single(f"{name}.{key}", inner, model)


def is_section(model: type[BaseModel], name: str) -> bool:
    """Whether a dotted name is a section's, whose settings have names of their own."""
    first, _, rest = name.partition(".")
    section = _section_of(model.model_fields.get(first))
    return section is not None and (not rest or is_section(section, rest))


def names_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The names that a section has; the path to it may lead through lists of sections, by their places."""
    for part in path:
        if part.isdecimal():
            continue
        field = model.model_fields.get(part)
        inner = None if field is None else _section_of(field) or _section_in(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section of which a setting takes a list."""
    for kind in typing.get_args(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        if (found := _section_in(kind)) is not None:
            return found
    return None


def by_name(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= by_name(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def dotted_names(values: Mapping[str, Any]) -> list[str]:
    """The dotted name of every value in nested ones."""
    return list(by_name(values))


def differing(several: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Each setting that isn't the same in all of several values by dotted name, with its value (or ABSENT) in each."""
    all_names = dict.fromkeys(name for values in several for name in values)
    rows = [(name, [values.get(name, ABSENT) for values in several]) for name in all_names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def joined(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others on top; sections are joined, not replaced."""
    result = dict(values)
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = joined(result[name], value) if both else value
    return result


def _setting(name: str, field: FieldInfo) -> Setting:
    annotation = field.annotation
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    return Setting(
        name=name,
        # Without validated data: no default here hangs on another setting, those are None and resolved later.
        default=field.get_default(call_default_factory=True, validated_data={}),
        description=field.description or "",
        kinds=tuple(kind for kind in kinds if kind is not types.NoneType),
        is_optional=types.NoneType in kinds,
        bounds={
            bound: getattr(item, bound)
            for item in field.metadata
            for bound in _BOUNDS
            if getattr(item, bound, None) is not None
        },
    )


def _section_of(field: FieldInfo | None) -> type[BaseModel] | None:
    annotation = field.annotation if field is not None else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _keys(model: type[BaseModel], name: str) -> Sequence[str]:
    """The keys on the way to a dotted name: sections, the setting, perhaps a key of it."""
    first, _, rest = name.partition(".")
    field = model.model_fields.get(first)
    section = _section_of(field)
    if not rest:
        return [first]
    if section is not None:
        return [first, *_keys(section, rest)]
    is_mapping = field is not None and any(typing.get_origin(kind) is dict for kind in _setting(first, field).kinds)
    return [first, rest] if is_mapping else [first, *rest.split(".")]


def _in_words(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " | ".join(str(choice) for choice in parts)
    if origin is tuple:
        return f"list of {_in_words(parts[0])}"
    if origin is dict:
        return "mapping"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_in_words(part) for part in parts)
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
