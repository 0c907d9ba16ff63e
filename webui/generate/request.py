"""The request behind Generate's form and the adapters in use, checked as far as that takes no model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora import GenerateConfig
from sdlora.config import fields
from sdlora.config.fields import Field
from sdlora.errors import AdapterError, ConfigError
from sdlora.library.prompt_tags import take_tags
from sdlora.library.rows import Rows, check_family, used
from sdlora.models.found import family_of
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
