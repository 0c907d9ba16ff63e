"""The request behind Generate's form and the adapters in use, checked as far as that takes no model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdlora import GenerateConfig
from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import AdapterError, ConfigError, SdloraError
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import Grid
from sdlora.library.prompt_tags import split_prompt, take_tags
from sdlora.library.rows import Rows, check_family, used
from sdlora.models.found import family_of
from sdlora.models.prompts import CHUNK_TOKENS, count_tokens
from sdlora.models.tokenizer import light_tokenizer
from webui import fields
from webui.fields import Field
from webui.services import Services

LEFT_OUT = ("adapters", "adapter_folders", "files.folder", "start.image", "start.mask")
"""Settings of a request that the form shows in another way, or not at all."""
FIELDS: tuple[Field, ...] = fields.fields(GenerateConfig, LEFT_OUT)
_NAMES = {field.name for field in FIELDS}


def read_request(
    services: Services,
    shown: Mapping[str, Any],
    *,
    start: tuple[Path | None, Path | None] = (None, None),
    rows: Rows | None = None,
    one_image: bool = False,
) -> GenerateConfig:
    """The request behind what the form shows, its images to go into a folder of today. start: image and mask.

    rows: in place of the adapters in use. one_image: for a grid, which generates one a cell. Raises ConfigError with
    every problem at once.
    """
    rows = services.active.rows if rows is None else rows
    problems = [f"{name}: unknown setting" for name in shown if name not in _NAMES]
    others: dict[str, Any] = {
        "adapter_folders": [str(folder) for folder in services.adapter_folders],
        "files.folder": services.workspace.outputs / time.strftime("%Y-%m-%d"),
        "start.image": start[0],
        "start.mask": start[1],
    }
    try:
        others["adapters"] = [adapter.model_dump() for adapter in used(rows)]
    except ConfigError as error:
        problems = [*error.problems, *problems]
    config, found = fields.check(GenerateConfig, FIELDS, {**shown, "num_images": 1} if one_image else shown, others)
    problems += found
    if config is not None:
        problems += _problems_of(services, config, rows)
    if problems:
        raise ConfigError("the request", problems)
    checked: GenerateConfig = config
    return checked


def read_grid(services: Services, config: GenerateConfig, axes: Sequence[str], run: str | None = None) -> Grid:
    """The grid of a request over axes such as `adapter.weight=0:1.2:0.2`. Raises ConfigError with every problem.

    run: the name of the run that the axis `checkpoint` means.
    """
    config = take_tags(config)
    return Grid(config, parse_axes(axes, config, services.run_folder(run)))


def count_prompt_tokens(prompt: str, model: str) -> tuple[int, int]:
    """Tokens of a prompt without its `<lora:...>` tags, and the room in the chunks that they take."""
    try:
        text = split_prompt(prompt)[0]
    except ConfigError:
        text = prompt
    tokens = count_tokens(_tokenizer(model), text)
    return tokens, CHUNK_TOKENS * max(1, -(-tokens // CHUNK_TOKENS))


def _problems_of(services: Services, config: GenerateConfig, rows: Rows) -> list[str]:
    problems: list[str] = []
    family = family_of(config.base_model)
    base = None if family is None else (config.base_model.model, family)
    try:
        check_family(rows, services.adapters, base)
    except AdapterError as error:
        problems.append(f"adapters: {error}")
    try:
        take_tags(config)
    except ConfigError as error:
        problems += [f"prompt: {problem}" for problem in error.problems]
    return problems


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> Any:
    try:
        return light_tokenizer(BaseModelConfig(model=model))
    except (SdloraError, OSError, ValueError):  # nothing there yet: all families share CLIP's vocabulary
        return light_tokenizer(BaseModelConfig())
