"""A request made complete and checked, before any model is loaded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from sdlora.adapters.algebra.blocks import block_weights
from sdlora.adapters.files.catalog import require_adapter
from sdlora.adapters.files.hub_files import local_file
from sdlora.config.base_model import BaseModelConfig, FamilyName, Prediction
from sdlora.config.generate import GenerateConfig, UsedAdapter, sampler_problem, samplers_for
from sdlora.constants import LATENT_FACTOR
from sdlora.data.decoding import UnreadableImageError
from sdlora.errors import ConfigError, SdloraError
from sdlora.generation.request.compute import choose_device
from sdlora.generation.request.prompt_choices import choose
from sdlora.generation.request.prompt_schedule import schedule
from sdlora.generation.request.start_images import fitting_size, start_problems
from sdlora.library.prompt_tags import take_readable_tags
from sdlora.models.completeness import check_parts, check_vae
from sdlora.models.detection import Detection, detect

Answer = TypeVar("Answer")

_SEEDS = 2**32
_LCM_MOST_STEPS = 50
"""Latent consistency models are distilled at this many timesteps (Luo et al. 2023)."""

_ROWS_SHARE = ("sampler", "steps", "guidance_rescale", "width_px", "height_px", "second_pass", "base_model", "compute")
"""What the images of a mixed batch must have in common."""


def resolve(config: GenerateConfig, detection: Detection | None = None) -> GenerateConfig:
    """The request with the prompt's adapter tags among its adapters, its sizes and seed filled in.

    detection: of the base model, when it is known already. Reads headers only. Raises ConfigError listing every
    problem: base model, adapters and their families, sizes, start image and mask, sampler, device.
    """
    problems: list[str] = []
    if detection is None:
        detection = _try(problems, "base_model", lambda: _detected(config.base_model))
    kinds = ("adapter_folders", "embedding_folders", "wildcard_folders")
    missing = [(name, path) for name in kinds for path in getattr(config, name) if not path.expanduser().is_dir()]
    problems += [f"{name}: {path}: no such folder" for name, path in missing]
    if not missing:
        config, wrong_tags = take_readable_tags(config)
        problems += wrong_tags
        # With any seed: this only asks whether all wildcards can be read.
        _try(problems, "prompt", lambda: _chosen(config, 0))
    for text in (config.prompt, config.negative):
        _try(problems, "prompt", lambda text=text: schedule(text, config.steps))  # type: ignore[misc]
    files_at_fault = start_problems(config.start)
    problems += files_at_fault
    if detection is not None:
        for number, adapter in enumerate(config.adapters):
            problems += _adapter_problems(f"adapters.{number}", adapter, detection.family)
        for number, merged in enumerate(config.base_model.adapters):
            adapter = UsedAdapter(file=merged.file, weight=merged.weight)
            problems += _adapter_problems(f"base_model.adapters.{number}", adapter, detection.family)
        config = _with_fitting_sampler(config, detection.prediction)
        if problem := sampler_problem(config.sampler, detection.prediction):
            problems.append(f"sampler: {problem}")
        if not files_at_fault:
            config = _sized(config, detection.native_resolution)
    if config.sampler == "LCM" and config.steps > _LCM_MOST_STEPS:
        problems.append(f"steps: the LCM sampler takes at most {_LCM_MOST_STEPS}, not {config.steps}")
    try:
        choose_device(config.compute.device)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("the request", problems)
    # Chosen here, once: the request that is stored in the image must repeat it.
    seed = random.randrange(_SEEDS) if config.seed == -1 else config.seed
    return config.model_copy(update={"seed": seed})


def _detected(config: BaseModelConfig) -> Detection:
    """What the base model is. Raises ModelError also where a part of it is missing."""
    detection = detect(config)
    check_parts(config, detection.family)
    if config.vae is not None:
        check_vae(config.vae)
    return detection


def single_images(config: GenerateConfig) -> list[GenerateConfig]:
    """A resolved request as one request for each of its images: seeds count up, and settle the prompts' choices."""
    seeds = [(config.seed + index) % _SEEDS for index in range(config.num_images)]
    return [config.model_copy(update={"seed": seed, "num_images": 1, **_chosen(config, seed)}) for seed in seeds]


def _chosen(config: GenerateConfig, seed: int) -> dict[str, object]:
    if not config.choices:
        return {}
    texts = {"prompt": config.prompt, "negative": config.negative}
    chosen = {name: choose(text, seed, config.wildcard_folders) for name, text in texts.items()}
    # What is left of braces is text now: the image's own request must not choose again.
    return {**chosen, "choices": False} if chosen != texts else {}


def fit_together(one: GenerateConfig, other: GenerateConfig) -> bool:
    """Whether two resolved requests can be generated in one batch."""
    same = all(getattr(one, name) == getattr(other, name) for name in _ROWS_SHARE)
    return same and _start_kind(one) == _start_kind(other)


def check_rows(rows: Sequence[GenerateConfig]) -> None:
    """Raise ConfigError unless these resolved requests can be generated as one batch."""
    differing = [name for name in _ROWS_SHARE if any(getattr(row, name) != getattr(rows[0], name) for row in rows)]
    if any(_start_kind(row) != _start_kind(rows[0]) for row in rows):
        differing.append("start.strength, or whether there is a start image and a mask")
    if differing:
        raise ConfigError("the batch", [f"{name}: must be the same for all images of a batch" for name in differing])


def same_base(one: BaseModelConfig, other: BaseModelConfig) -> bool:
    """Whether two settings mean the same loaded model; clip_skip only chooses a layer of it."""
    return one.model_copy(update={"clip_skip": 1}) == other.model_copy(update={"clip_skip": 1})


def second_size(config: GenerateConfig) -> tuple[int, int]:
    """Width and height in pixels of the second pass of a resolved request."""
    assert config.width_px is not None
    assert config.height_px is not None
    scale = config.second_pass.scale / LATENT_FACTOR
    return round(config.width_px * scale) * LATENT_FACTOR, round(config.height_px * scale) * LATENT_FACTOR


def _start_kind(config: GenerateConfig) -> tuple[object, ...]:
    start = config.start
    return (start.image is None, start.mask is None, start.image is not None and start.strength)


def _try(problems: list[str], name: str, ask: Callable[[], Answer]) -> Answer | None:
    """What was asked for, or None with the problem noted."""
    try:
        return ask()
    except ConfigError as error:
        problems += error.problems
    except SdloraError as error:
        problems.append(f"{name}: {error}")
    return None


def _adapter_problems(name: str, adapter: UsedAdapter, family: FamilyName) -> list[str]:
    try:
        found = require_adapter(local_file(adapter.file))
        if found.family not in (None, family):
            return [f"{name}: {adapter.file} is for {found.family}, the base model is {family}"]
        block_weights(adapter.blocks, family, adapter.file)
    except ConfigError as error:
        return [f"{name}: {problem}" for problem in error.problems]
    except SdloraError as error:
        return [f"{name}: {error}"]
    return []


def _with_fitting_sampler(config: GenerateConfig, prediction: Prediction) -> GenerateConfig:
    """With a sampler that the model has, where nobody has asked for another."""
    if "sampler" in config.model_fields_set or config.sampler in (known := samplers_for(prediction)):
        return config
    return config.model_copy(update={"sampler": known[0]})


def _sized(config: GenerateConfig, native_px: int) -> GenerateConfig:
    if config.width_px is not None and config.height_px is not None:
        return config
    try:
        width_px, height_px = fitting_size(config.start, native_px)
    except UnreadableImageError as error:
        raise ConfigError("the request", [f"start.image: {error}"]) from error
    size = {"width_px": config.width_px or width_px, "height_px": config.height_px or height_px}
    return config.model_copy(update=size)
