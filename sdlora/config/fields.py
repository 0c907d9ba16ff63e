"""Settings as form fields: which input each one wants, and its value as the input shows it and back.

A shown value is what an input holds: a number, a flag, or text. What can't be read as the setting's
kind is handed on as it stands, so that the configuration's own check names the setting and says what it must be.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from sdlora import text_files
from sdlora.config.files import validate
from sdlora.config.schema import Setting, flatten, nest, settings
from sdlora.errors import ConfigError

Kind = Literal["choice", "flag", "number", "text", "lines", "list", "yaml"]
"""choice: one of a few. lines: one text or path a line. list: numbers between commas. yaml: names with values."""

DEFAULT = "default"
"""How a choice shows that a setting is left to its default."""

_WORDS = {"unet": "UNet", "vae": "VAE", "ema": "EMA", "snr": "SNR", "rslora": "rsLoRA", "dora": "DoRA", "lora": "LoRA",
          "lokr": "LoKr", "px": "(px)"}  # fmt: skip
_TRUTH = {True: "on", False: "off"}


def empty_means(description: str) -> str:
    """What leaving an optional setting empty stands for."""
    return "the default" if "default" in description else "not set"


@dataclass(frozen=True)
class Field:
    """One setting as an input."""

    name: str
    """Dotted: `adapter.rank`."""
    label: str
    info: str
    """What it means, in one line of Markdown: description, bounds, what an empty input stands for."""
    kind: Kind
    default: Any
    choices: tuple[Any, ...]
    """The values of a choice."""
    is_optional: bool
    """Whether it may be left to a default that depends on other settings: empty, or `default`."""
    allows_one: bool
    """lines and list: whether one entry stands for itself and not for a list of one."""
    step: float
    """What the arrow keys of a number add."""

    @property
    def section(self) -> str:
        """`adapter` of `adapter.rank`; empty at the top."""
        return self.name.rpartition(".")[0]

    @property
    def words(self) -> str:
        """What a search compares, in small letters."""
        return f"{self.name} {self.label} {self.info}".lower()

    @property
    def spelled_choices(self) -> list[str]:
        """The choices as the input lists them."""
        return [*([DEFAULT] if self.is_optional else []), *(_spell(choice) for choice in self.choices)]


def fields(section: type[BaseModel], leave_out: Collection[str] = ()) -> tuple[Field, ...]:
    """All settings of a section and the sections in it, in the order of their declaration.

    leave_out: names of settings, or of whole sections, that the form shows in another way.
    """
    left_out = {"version", *leave_out}
    return tuple(
        _field(setting)
        for setting in settings(section)
        if not any(f"{setting.name}.".startswith(f"{name}.") for name in left_out)
    )


def show(field: Field, value: Any) -> Any:
    """A setting's value as its input shows it."""
    if field.kind == "flag":
        return bool(value)
    if field.kind == "number":
        return value
    if field.kind == "choice":
        return DEFAULT if value is None else _spell(value)
    if field.kind == "lines":
        return "\n".join(_quote(str(entry)) for entry in _entries(value))
    if field.kind == "list":
        return ", ".join(str(entry) for entry in _entries(value))
    if field.kind == "yaml":
        if value in (None, {}, (), []):
            return ""
        if isinstance(value, str):
            # In quotes where YAML would read something else than text, such as 1 or true.
            return value if _read_scalar(value) == value else json.dumps(value)
        return yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True).removesuffix("...\n").strip()
    # Empty stands for "not set" there, so a text that is empty needs quotes.
    return "" if value is None else _quote(str(value)) if field.is_optional else str(value)


def read(field: Field, shown: Any) -> Any:
    """The setting's value behind what its input shows: the inverse of `show`."""
    if field.kind == "flag":
        return bool(shown)
    if field.kind == "number":
        # A whole number beyond 2**53 is no longer the one that was typed, and is left for the check to name.
        return int(shown) if isinstance(shown, float) and shown.is_integer() and abs(shown) < 2**53 else shown
    if field.kind == "choice":
        by_spelling = {_spell(choice): choice for choice in field.choices}
        return None if shown in (DEFAULT, None) and field.is_optional else by_spelling.get(shown, shown)
    text = "" if shown is None else str(shown)
    if field.kind == "text":
        return text if not field.is_optional else None if text == "" else _unquote(text)
    if field.kind == "yaml":
        if not text.strip():
            return None if field.is_optional else type(field.default)()
        return _read_scalar(text)
    if field.kind == "lines":
        entries = [_unquote(line.strip()) for line in text.splitlines() if line.strip()]
    else:
        entries = [_number(part) for part in text.split(",") if part.strip()]
    if not entries and field.is_optional:
        return None
    return entries[0] if field.allows_one and len(entries) == 1 else entries


def show_all(config: BaseModel, among: Sequence[Field]) -> dict[str, Any]:
    """What the inputs show for a configuration, by dotted name."""
    values = flatten(config)
    return {field.name: show(field, values[field.name]) for field in among}


def check(
    section: type[BaseModel], among: Sequence[Field], shown: Mapping[str, Any], others: Mapping[str, Any] | None = None
) -> tuple[Any, list[str]]:
    """The configuration behind the inputs, or None and every problem, each beginning with its setting's name.

    others: values by dotted name of settings that have no input.
    """
    values, problems = dict(others or {}), []
    for field in among:
        if field.name not in shown:
            continue
        value = read(field, shown[field.name])
        if value is None and not field.is_optional:
            problems.append(f"{field.name}: is empty; its default is {_spell(field.default)}")
        else:
            values[field.name] = value
    try:
        config = validate(nest(values), "the form", section)
    except ConfigError as error:
        return None, [*problems, *error.problems]
    return (None if problems else config), problems


def setting_of(problem: str, among: Sequence[Field]) -> Field | None:
    """The field that a problem is about: the first setting named in it, a section's own checks included."""
    names = {field.name: field for field in among}
    for word in re.findall(r"\w+(?:\.\w+)*", problem):
        if word in names:
            return names[word]
    section = problem.partition(":")[0]
    inside = {field.name.rpartition(".")[2]: field for field in among if field.section == section}
    return next((inside[word] for word in re.findall(r"\w+", problem) if word in inside), None)


def differences(
    among: Sequence[Field], before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[Field, Any, Any]]:
    """The fields that show something else after than before, with both."""
    for field in among:
        if field.name in before and field.name in after and not _same(before[field.name], after[field.name]):
            yield field, before[field.name], after[field.name]


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) or (one in (None, "") and other in (None, ""))


def _field(setting: Setting) -> Field:
    kind = _kind(setting)
    bounds = setting.bounds if kind == "number" else {}
    words = [_WORDS.get(word, word) for word in setting.name.rpartition(".")[2].split("_")]
    first = words[0] if words[0] in _WORDS.values() else words[0].capitalize()
    return Field(
        name=setting.name,
        label=" ".join([first, *words[1:]]),
        info=_info(setting.description, kind, bounds, setting.is_optional),
        kind=kind,
        default=setting.default,
        choices=setting.choices if kind == "choice" else (),
        is_optional=setting.is_optional,
        allows_one=kind in ("lines", "list") and setting.entry in setting.kinds,
        step=_step(setting.kinds, setting.default, bounds),
    )


def _kind(setting: Setting) -> Kind:
    if setting.kinds == (bool,):
        return "flag"
    if setting.choices:
        return "choice"
    if setting.kinds in ((int,), (float,)):
        return "number"
    if setting.kinds in ((str,), (Path,), (int, str)):
        return "text"
    if setting.entry in (str, Path):
        return "lines"
    return "list" if setting.entry in (int, float) else "yaml"


def _info(description: str, kind: Kind, bounds: Mapping[str, float], is_optional: bool) -> str:
    text = " ".join(description.split())
    hints = [_bounds_in_words(bounds)]
    if kind == "lines":
        hints.append("one a line")
    if kind == "list":
        hints.append("numbers between commas")
    if is_optional and kind != "choice":
        hints.append(f"empty: {empty_means(text)}")
    hint = "; ".join(hint for hint in hints if hint)
    return _without_tags(f"{text.removesuffix('.')}. {hint[0].upper()}{hint[1:]}." if hint else text)


def _without_tags(text: str) -> str:
    """Markdown that shows <these> as they stand; between backticks it does so by itself."""
    parts = text.split("`")
    return "`".join(part if index % 2 else html.escape(part, quote=False) for index, part in enumerate(parts))


def _bounds_in_words(bounds: Mapping[str, float]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    shown = {name: value for name, value in bounds.items() if value < 2**31}  # how numbers are stored is no bound
    if shown.keys() >= {"ge", "le"}:
        rest = f", a multiple of {shown['multiple_of']:g}" if "multiple_of" in shown else ""
        return f"{shown['ge']:g} to {shown['le']:g}{rest}"
    return ", ".join(f"{words[name]} {value:g}" for name, value in shown.items())


def _step(parts: Sequence[Any], default: Any, bounds: Mapping[str, float]) -> float:
    if float not in parts:
        return bounds.get("multiple_of", 1)
    if isinstance(default, float) and default > 0:
        # A tenth of the default's own power of ten: 1e-5 for 1e-4.
        return float(10.0 ** (math.floor(math.log10(default)) - 1))
    return 0.05 if max(bounds.get("le", 2), bounds.get("lt", 2)) <= 1 else 0.1


def _spell(value: Any) -> str:
    return _TRUTH[value] if isinstance(value, bool) else str(value)


def _entries(value: Any) -> Sequence[Any]:
    return () if value is None else value if isinstance(value, list | tuple) else (value,)


def _quote(text: str) -> str:
    """The text, in double quotes with escapes where it could not be told apart otherwise (empty, several lines)."""
    is_plain = text == text.strip() and text != "" and len(text.splitlines()) == 1 and not text.startswith('"')
    return text if is_plain else json.dumps(text, ensure_ascii=True)


def _unquote(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            inside = text_files.parse_json(text)
        except ValueError:
            return text
        return inside if isinstance(inside, str) else text
    return text


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _read_scalar(text: str) -> Any:
    try:
        return text_files.parse_yaml(text)
    except ValueError:
        return text
