"""A grid's axes over adapters: their settings and files, the checkpoints of a run, which of them are used."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sdlora.config import files
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.generation.grid.values import CHOICE, FILE, SETTING, Axis, AxisValue, expand_numbers, split_values
from sdlora.library.names import find_adapter
from sdlora.library.prompt_tags import take_tags
from sdlora.runs.folder import open_run
from sdlora.runs.results import adapter_files

_WEIGHTS = ("weight", "unet", "text_encoder", "text_encoder_2")
"""What `weight` stands for where the others aren't given."""


def adapter_axis(spec: str, name: str, match: re.Match[str], raw: str, config: GenerateConfig) -> Axis:
    """`adapter.weight=...`, `adapter2.file=...`; match: the adapter's number, if any, and its setting."""
    number = int(match[1]) if match[1] else None
    values = split_values(raw)
    if match[2] == "file":
        files_in_place = tuple(_adapter_file(value, number, config) for value in values)
        return Axis(spec, name, FILE, files_in_place, _changed_by_file(number or 1, "none" in values, config))
    if match[2] not in UsedAdapter.model_fields:
        near = difflib.get_close_matches(match[2], UsedAdapter.model_fields, n=1, cutoff=0.5)
        raise ValueError(f"unknown setting of an adapter{f'; did you mean adapter.{near[0]}?' if near else ''}")
    if match[2] != "blocks":
        values = expand_numbers(values)

    def setter(value: str) -> Callable[[GenerateConfig], GenerateConfig]:
        def apply(config: GenerateConfig) -> GenerateConfig:
            adapter = _chosen(config, number)
            if match[2] == "weight" and adapter.unet is not None:
                both = " and text_encoder weights" if adapter.text_encoder is not None else " weight"
                less = "effect" if adapter.text_encoder is not None else "effect on the UNet"
                raise ConfigError(
                    "the grid", [f"adapter.weight has no {less} beside its unet{both}; vary adapter.unet"]
                )
            changed = files.validate({**adapter.model_dump(), match[2]: value}, name, UsedAdapter)
            return _with_adapter(config, adapter, changed)

        return apply

    set_values = tuple(AxisValue(value, setter(value)) for value in values)
    fields = _WEIGHTS if match[2] == "weight" else (match[2],)
    return Axis(spec, name, SETTING, set_values, frozenset(f"adapter{number or 1}.{field}" for field in fields))


def _changed_by_file(number: int, may_go: bool, config: GenerateConfig) -> frozenset[str]:
    """The file; with one that may go, all of those behind it, which would then be counted otherwise."""
    behind = range(number + 1, len(config.adapters) + 1) if may_go else ()
    of_others = (f"adapter{one}.{field}" for one in behind for field in UsedAdapter.model_fields)
    own = (f"adapter{number}.{field}" for field in UsedAdapter.model_fields if may_go and behind)
    return frozenset({f"adapter{number}.file", *own, *of_others})


def _chosen(config: GenerateConfig, number: int | None) -> UsedAdapter:
    adapters = config.adapters
    if not adapters:
        raise ConfigError("the grid", ["there is no adapter to vary; give one, or a checkpoint axis"])
    if number is None and len(adapters) == 1:
        return adapters[0]
    if number is None or not 1 <= number <= len(adapters):
        listed = ", ".join(f"adapter{index} ({Path(one.file).stem})" for index, one in enumerate(adapters, 1))
        raise ConfigError("the grid", [f"say which adapter is meant: {listed}"])
    return adapters[number - 1]


def _with_adapter(config: GenerateConfig, old: UsedAdapter, new: UsedAdapter | None) -> GenerateConfig:
    # By identity: the same file may be there twice with equal weights.
    place = next(index for index, adapter in enumerate(config.adapters) if adapter is old)
    adapters = list(config.adapters)
    adapters[place : place + 1] = [] if new is None else [new]
    return config.model_copy(update={"adapters": tuple(adapters)})


def _file_change(file: Path | str | None, number: int | None) -> Callable[[GenerateConfig], GenerateConfig]:
    """Put a file in an adapter's place, keeping its weights; without an adapter it becomes the first one."""

    def apply(config: GenerateConfig) -> GenerateConfig:
        if not config.adapters and number is None:
            added = () if file is None else (UsedAdapter(file=str(file)),)
            return config.model_copy(update={"adapters": added})
        old = _chosen(config, number)
        return _with_adapter(config, old, None if file is None else old.model_copy(update={"file": str(file)}))

    return apply


def _adapter_file(value: str, number: int | None, config: GenerateConfig) -> AxisValue:
    if value == "none":
        return AxisValue("none", _file_change(None, number))
    if value.startswith("hf:") or Path(value).expanduser().exists():
        return AxisValue(Path(value).stem, _file_change(value, number))
    if value.endswith(".safetensors") and not config.adapter_folders:
        raise ValueError(f"'{value}': there is no such file")
    return AxisValue(value, _file_change(find_adapter(value, config.adapter_folders), number))


def checkpoint_files(run: Path) -> dict[str, Path]:
    """The adapter files of a run by what an axis calls them: their step, or `final`. Raises ConfigError for no run."""
    folder, config = open_run(run)
    found = {str(file.step): file.path for file in adapter_files(folder) if file.step is not None}
    final = folder.adapter(config.name)
    return {**found, "final": final} if final.is_file() else found


def checkpoint_axis(spec: str, raw: str, files_by_step: Mapping[str, Path] | None) -> Axis:
    """`checkpoint=100,200,final`: the files of a run, as `checkpoint_files` gives them, in the adapter's place."""
    if files_by_step is None:
        raise ValueError("say whose checkpoints: --run runs/NAME")
    values = expand_numbers(split_values(raw))
    if values == ["all"]:
        values = list(files_by_step)
    missing = [value for value in values if value not in files_by_step]
    if missing or not values:
        there = ", ".join(files_by_step) or "none"
        raise ValueError(f"the run has no checkpoint {', '.join(missing)}; there is: {there}")
    found = tuple(AxisValue(value, _file_change(files_by_step[value], None)) for value in values)
    return Axis(spec, "training step", FILE, found, frozenset({"adapter1.file"}))


def compare_axis(spec: str, config: GenerateConfig) -> Axis:
    """`compare`: no adapter, each of the request's alone, all together."""
    adapters = take_tags(config).adapters
    count = len(adapters)
    if count == 0:
        raise ValueError("there is no adapter to compare; give some, or write them into the prompt")

    def keep(indices: Sequence[int]) -> Callable[[GenerateConfig], GenerateConfig]:
        def apply(config: GenerateConfig) -> GenerateConfig:
            if [one.file for one in config.adapters] != [one.file for one in adapters]:
                raise ConfigError("the grid", ["compare: another axis changes which adapters there are"])
            return config.model_copy(update={"adapters": tuple(config.adapters[index] for index in indices)})

        return apply

    values = [AxisValue("none", keep(()))]
    values += [AxisValue(Path(adapters[index].file).stem, keep([index])) for index in range(count)]
    if count > 1:
        values.append(AxisValue("together", keep(range(count))))
    named = frozenset(f"adapter{number}.file" for number in range(1, count + 1))  # which its labels name
    return Axis(spec, "adapters", CHOICE, tuple(values), named)
