"""Which adapters are mixed or merged, how strongly and by which method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, TypeVar, overload

from pydantic import Field, ValidationError, model_validator

from sdlora.config.base_model import FamilyName, Precision
from sdlora.config.section import Section
from sdlora.errors import ConfigError

MixMethod = Literal["concat", "svd", "linear", "ties", "dare", "dare-ties"]
_WEIGHT = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
# The file takes as little as it can, and with it whatever behind a colon is no weight: C:\loras\ink.safetensors.
_SPELLED = re.compile(rf"(?P<file>.+?)(?::(?P<weight>{_WEIGHT}))?(?::(?P<settings>[A-Za-z]\w*=.+))?")
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")
_NO_WEIGHT = re.compile(r"[+-]?(?:[\d.,]+%?|nan|inf)", re.IGNORECASE)
"""What is meant as a weight, and can't be one."""
_SETTING = re.compile(r"(\w+)=(\[[^\]]*\]|[^,]+)(?:,|$)")
_NAMES = {"unet": "unet", "te": "text_encoder", "te2": "text_encoder_2"}
_TIMES = ("start", "end")


class MixedAdapter(Section):
    file: str
    """Adapter file, or hf://owner/name[/file]."""

    weight: float = 1.0
    """What the whole update is multiplied by; negative weights take it away."""

    unet: float | None = None
    """Weight of the UNet's layers, instead of `weight`."""

    text_encoder: float | None = None
    """Weight of the text encoders' layers, instead of `weight`."""

    text_encoder_2: float | None = None
    """SDXL: weight of the second text encoder's layers, instead of `text_encoder`."""

    blocks: str | list[float] | dict[str, float] = "ALL"
    """Weight by block, on top: a name (ALL, NONE, INS, IND, INALL, MIDD, OUTD, OUTS, OUTALL), a list in sd-scripts'
    lbw order (12 or 20 numbers for SDXL, 17 or 26 for others), or weights by name such as {MID: 0.5, OUT03: 0}."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """As the command line spells it: ink.safetensors:0.8."""
        if not isinstance(value, str | PathLike):
            return value
        try:
            return parse_adapter(str(value), cls).model_dump(exclude_unset=True)
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None


AnyAdapter = TypeVar("AnyAdapter", bound=MixedAdapter)


class MixConfig(Section):
    adapters: list[MixedAdapter] = Field(min_length=1)
    """The adapters to mix."""

    method: MixMethod = "concat"
    """concat (exact sum, ranks add up), svd (best approximation of the sum), linear (exact, for adapters that share a
    factor), ties (Yadav 2023), dare or dare-ties (Yu 2024)."""

    rank: int | None = Field(default=None, ge=1, le=4096)
    """Rank of every layer of the result (svd, ties, dare); layers that need less get less."""

    energy: float | None = Field(default=None, gt=0.0, le=1.0)
    """Instead of rank: share of each layer's sum of squares to keep, for example 0.99."""

    density: float = Field(default=0.5, gt=0.0, lt=1.0)
    """ties, dare: share of each adapter's values that is kept."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """dare: seed of the random choice."""

    base_model: str | None = None
    """Base model: needed for DoRA and others whose update depends on its weights; adapters that don't fit it are
    refused."""

    family: Literal["auto"] | FamilyName = "auto"
    """Stable Diffusion family, for files that don't tell."""

    precision: Precision = "fp16"
    """Number type of the written weights."""

    @property
    def truncates(self) -> bool:
        """Whether the method makes an approximation of a chosen rank."""
        return self.method not in ("concat", "linear")

    @model_validator(mode="after")
    def _check(self) -> MixConfig:
        chosen = sum(value is not None for value in (self.rank, self.energy))
        if self.truncates and chosen != 1:
            raise ValueError(f"method {self.method} needs a rank or an energy, one of them (for example rank: 32)")
        if not self.truncates and chosen:
            raise ValueError(f"rank and energy have no effect with method {self.method}; use svd")
        thins = {"density": ("ties", "dare", "dare-ties"), "seed": ("dare", "dare-ties")}
        useless = [
            f"{name} has no effect with method {self.method}; use {' or '.join(methods)}"
            for name, methods in thins.items()
            if self.method not in methods and getattr(self, name) != type(self).model_fields[name].default
        ]
        if useless:
            raise ValueError("\n".join(useless))
        return self


@overload
def parse_adapter(text: str) -> MixedAdapter: ...


@overload
def parse_adapter(text: str, kind: type[AnyAdapter]) -> AnyAdapter: ...


def parse_adapter(text: str, kind: type[MixedAdapter] = MixedAdapter) -> MixedAdapter:
    """An adapter as the command line spells it: `FILE[:WEIGHT][:name=value,...]`.

    Names: unet, te, te2 (weights), blocks (a name such as MIDD, a list `[1,0,...]`, or `MID=0.5` and the like), and for
    a kind that has them start and end. Raises ConfigError for anything else.
    """
    match = _SPELLED.fullmatch(text)
    if match is None:
        raise ConfigError("the command line", [f"'{text}': write FILE:0.8 or FILE:unet=0.6,te=0.3,blocks=OUTD"])
    before, _, behind = match["file"].rpartition(":")
    if before and (before.lower().endswith(_SUFFIXES) or _NO_WEIGHT.fullmatch(behind)):
        write = "write a number with a point, FILE:0.8, and what comes on top behind another colon, FILE:0.8:unet=0.6"
        raise ConfigError(text, [f"':{behind}' is no weight; {write}"])
    values: dict[str, object] = {"file": match["file"]}
    if match["weight"]:
        values["weight"] = float(match["weight"])
    times = [name for name in _TIMES if name in kind.model_fields]
    blocks: dict[str, float] = {}
    settings = match["settings"] or ""
    if settings and not re.fullmatch(rf"(?:{_SETTING.pattern})+", settings):
        raise ConfigError(text, [f"'{settings}' is not a list of name=value"])
    given = [name for name, _ in _SETTING.findall(settings)]
    if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
        raise ConfigError(text, [f"{', '.join(twice)} is given twice"])
    for name, value in _SETTING.findall(settings):
        if name == "blocks":
            values["blocks"] = [_number(part, text) for part in value[1:-1].split(",")] if value[0] == "[" else value
        elif name in _NAMES:
            values[_NAMES[name]] = _number(value, text)
        elif name in times:
            values[name] = _number(value, text)
        elif name.isupper():
            blocks[name] = _number(value, text)
        else:
            known = ", ".join([*_NAMES, *times, "blocks"])
            raise ConfigError(text, [f"'{name}' is not known here; use {known}, or a block such as MID"])
    if blocks:
        if "blocks" in values:
            raise ConfigError(text, ["give either blocks=... or single blocks such as MID=0.5, not both"])
        values["blocks"] = blocks
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(text, [_in_words(item) for item in error.errors()]) from None


def parse_adapters(texts: Sequence[str], kind: type[AnyAdapter]) -> list[AnyAdapter]:
    """Several of them. Raises ConfigError that lists the problems of all."""
    parsed: list[AnyAdapter] = []
    errors: list[ConfigError] = []
    for text in texts:
        try:
            parsed.append(parse_adapter(text, kind))
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        told = [f"{error.source}: {problem}" for error in errors for problem in error.problems]
        raise ConfigError("the command line", list(dict.fromkeys(told)))
    return parsed


def _in_words(item: Any) -> str:
    """One pydantic error without pydantic's own words around it."""
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    name = ".".join(str(part) for part in item["loc"] if part in MixedAdapter.model_fields or part in _TIMES)
    return f"{name}: {item['msg'].replace('Input should be', 'must be')}; got {item['input']!r}"


def spell_adapter(adapter: MixedAdapter) -> str:
    """The inverse of `parse_adapter`: an adapter as the command line takes it."""
    settings = [
        f"{name}={getattr(adapter, field)!r}" for name, field in _NAMES.items() if getattr(adapter, field) is not None
    ]
    settings += [f"{name}={getattr(adapter, name)!r}" for name in _TIMES if name in adapter.model_fields_set]
    if isinstance(adapter.blocks, dict):
        settings += [f"{name}={weight!r}" for name, weight in adapter.blocks.items()]
    elif isinstance(adapter.blocks, list):
        settings.append(f"blocks=[{','.join(repr(weight) for weight in adapter.blocks)}]")
    elif adapter.blocks != "ALL":
        settings.append(f"blocks={adapter.blocks}")
    return ":".join([adapter.file, repr(adapter.weight), *([",".join(settings)] if settings else [])])


def _number(value: str, source: str) -> float:
    if not re.fullmatch(_WEIGHT, value.strip()):
        raise ConfigError(source, [f"'{value}' is not a number"])
    return float(value)
