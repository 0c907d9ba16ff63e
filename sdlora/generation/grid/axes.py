"""What a grid varies along its axes, from texts such as `adapter.weight=0:1.2:0.2`. Needs no torch.

<setting>=...             any setting of a request: seed, steps, sampler, start.strength, base_model.model, ...
adapter.<setting>=...     of the one adapter (weight, unet, text_encoder, start, end, blocks); adapter2.weight of
                          the second
adapter.file=a,b,none     other adapters in its place
checkpoint=100,200,final  the same with the files of a run; also `all`
replace=cat,dog,bird      the first text in the prompts (those of a prompt axis, too), as it is and with the others in
                          its place
size=512x512,640x448      width and height
compare                   no adapter, each alone, all together
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sdlora.config import files, schema
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.config.section import NO_TEXT, is_text
from sdlora.errors import ConfigError
from sdlora.generation.grid.adapters import adapter_axis, checkpoint_axis, checkpoint_files, compare_axis
from sdlora.generation.grid.values import REPLACEMENT, SETTING, TEXT, Axis, AxisValue, expand_numbers, split_values

COMPARE = "compare"
_SHORT_NAMES = {
    "cfg": "guidance",
    "weight": "adapter.weight",
    "clip_skip": "base_model.clip_skip",
    "model": "base_model.model",
    "base": "base_model.model",
    "strength": "start.strength",
}
_SIZE = re.compile(r"\d+\s*[xX]\s*\d+")
_SPECIAL = ("adapter.file", "checkpoint", "replace", "size", COMPARE)
_FIXED = ("version", "adapters", "adapter_folders", "num_images", "batch_size")
_ADAPTER = re.compile(r"adapter(\d*)\.(\w+)")


def parse_axes(specs: Sequence[str], config: GenerateConfig, run: Path | None = None) -> tuple[Axis, ...]:
    """Up to three axes from texts, in the order x, y, z; `y=` in front puts one where it belongs.

    config: the request they vary. run: the folder of the run for `checkpoint`. Raises ConfigError with every problem.
    """
    problems: list[str] = []
    checkpoints = None
    if run is not None:
        try:
            checkpoints = checkpoint_files(run)
        except ConfigError as error:
            problems += [f"--run {run}: {problem}" for problem in error.problems]
    placed: dict[str, Axis] = {}
    for spec, place in _placed(specs, problems):
        try:
            placed[place] = parse_axis(spec, config, checkpoints)
        except (ConfigError, ValueError) as error:
            several = error.problems if isinstance(error, ConfigError) else [str(error)]
            problems += [f"{spec}: {problem}" for problem in several]
    problems += [
        f"{one.spec} and {other.spec}: {what} varied by two axes, of which one would overrule the other"
        for one, other in itertools.combinations(placed.values(), 2)
        if (what := one.overruled_by(other)) is not None
    ]
    if problems:
        raise ConfigError("the grid", problems)
    return tuple(placed[place] for place in sorted(placed))


def _placed(specs: Sequence[str], problems: list[str]) -> list[tuple[str, str]]:
    """Every axis' text and its place: x, y or z."""
    named = {match[1].lower(): spec[2:] for spec in specs if (match := re.match(r"([xyzXYZ])=", spec))}
    unnamed = [spec for spec in specs if not re.match(r"[xyzXYZ]=", spec)]
    free = [place for place in "xyz" if place not in named]
    if len(named) + len(unnamed) != len(specs):
        problems.append("an axis is given twice; x, y and z each take one")
    if len(unnamed) > len(free):
        problems.append(f"{len(specs)} axes; a grid has up to three, x, y and z")
    return [(spec, place) for place, spec in named.items()] + list(zip(unnamed, free, strict=False))


def parse_axis(spec: str, config: GenerateConfig, checkpoints: Mapping[str, Path] | None = None) -> Axis:
    """One axis from its text. checkpoints: as `checkpoint_files` gives them. Raises ConfigError or ValueError."""
    written, _, raw = spec.partition("=")
    name = _SHORT_NAMES.get(written.strip(), written.strip())
    if name == COMPARE:
        return compare_axis(spec, config)
    if not raw.strip():
        raise ValueError("write it as setting=values, for example adapter.weight=0:1.2:0.2")
    if name == "checkpoint":
        return checkpoint_axis(spec, raw, checkpoints)
    if name == "replace":
        return _replacements(spec, raw)
    if name == "size":
        asked = split_values(raw)
        if wrong := [value for value in asked if not _SIZE.fullmatch(value.strip())]:
            raise ConfigError(spec, [f"'{value}' is no size; write 512x512" for value in wrong])
        sizes = tuple(_size(value) for value in asked)
        return Axis(spec, "size", SETTING, sizes, frozenset({"width_px", "height_px"}))
    if match := _ADAPTER.fullmatch(name):
        return adapter_axis(spec, name, match, raw, config)
    setting = _setting(name)
    values = split_values(raw)
    if setting.is_number:
        values = expand_numbers(values)
    if name == "seed":
        # Drawn when the axis is read, so that all cells of a column have the same seed.
        values = [str(random.randrange(2**32)) if value == "-1" else value for value in values]
    stage = TEXT if name in ("prompt", "negative") else SETTING
    changed = tuple(AxisValue(value, _setter(name, value)) for value in values)
    return Axis(spec, name, stage, changed, frozenset({name}))


# ---- settings of the request


def _setting(name: str) -> schema.Setting:
    if name in _FIXED or name.startswith("files."):
        raise ValueError(f"'{name}' can't be varied in a grid")
    setting = schema.find(GenerateConfig, name)
    if setting is None:
        known = [setting.name for setting in schema.settings(GenerateConfig)]
        choices = [*_SHORT_NAMES, *known, *_SPECIAL, *(f"adapter.{field}" for field in UsedAdapter.model_fields)]
        near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        raise ValueError(f"unknown setting{f'; did you mean {near[0]!r}?' if near else ''}")
    return setting


def _setter(name: str, value: str) -> Callable[[GenerateConfig], GenerateConfig]:
    def apply(config: GenerateConfig) -> GenerateConfig:
        # Validated anew: model_copy would take any value without a check.
        values = config.model_dump()
        schema.put(values, name, value)
        return files.validate(values, "the grid", GenerateConfig)

    return apply


def _size(value: str) -> AxisValue:
    # With spaces, too: so the page writes sizes in its own list.
    width, _, height = (part.strip() for part in value.lower().partition("x"))

    def apply(config: GenerateConfig) -> GenerateConfig:
        return _setter("height_px", height)(_setter("width_px", width)(config))

    return AxisValue(value, apply)


def _replacements(spec: str, raw: str) -> Axis:
    searched, *others = split_values(raw)
    if not others:
        raise ValueError("give the text to replace and at least one other, replace=cat,dog")
    if not is_text(raw):
        raise ValueError(NO_TEXT)

    def swap(new: str) -> Callable[[GenerateConfig], GenerateConfig]:
        def apply(config: GenerateConfig) -> GenerateConfig:
            if searched not in config.prompt and searched not in config.negative:
                raise ConfigError("the grid", [f"replace: '{searched}' is not in the prompts"])
            prompts = {"prompt": config.prompt, "negative": config.negative}
            return config.model_copy(update={name: text.replace(searched, new) for name, text in prompts.items()})

        return apply

    values = tuple(AxisValue(new, swap(new)) for new in (searched, *others))
    return Axis(spec, f"in place of {searched}", REPLACEMENT, values, frozenset(), (searched, *others))
