"""What a run would do, or what keeps it from beginning, as plain values: `sdlora train --dry-run --json`.

Loads no torch, so that a page can read what a process with torch has found out (`summary.dry_run`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from sdlora.config import schema
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError, SdloraError

_SETTING = re.compile(r"\b[a-z_]+\.[a-z_]+\b")


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Problem(_Values):
    """One thing that keeps the run from beginning."""

    setting: str | None
    """The setting to look at, by its dotted name, where the message tells one."""
    message: str


class SummaryLine(_Values):
    """One line of the summary that a person reads."""

    label: str
    text: str


class BucketSamples(_Values):
    """How many samples of an epoch are trained at a size."""

    width_px: int
    height_px: int
    samples: int


class Figures(_Values):
    """The figures of the summary, for programs."""

    total_steps: int
    processes: int
    """How many train together."""
    images_a_step: int
    """The global batch: images of one optimizer update, over all processes."""
    images_a_pass: int
    """The most that one process sends through the model at once."""
    epochs: float
    images: int
    """Different images that are trained."""
    held_out: int
    files_seen: int
    samples: int
    """Images in an epoch, repeats and resolutions counted."""
    batches: int
    """Batches in an epoch."""
    buckets: list[BucketSamples]
    upscaled: int
    """Images that are enlarged."""
    long_captions: dict[str, int]
    """Captions that are cut off: file name and number of tokens."""
    trainable_parameters: int
    memory_gib: float
    """About the peak of the training steps."""
    cache_bytes: int
    """Size of the encoded images, at most."""
    run_bytes: int
    """Size of the adapter and of all checkpoints kept."""
    free_disk_gib: float


class DryRun(_Values):
    """Everything found out about a run before it begins."""

    problems: list[Problem] = []
    lines: list[SummaryLine] = []
    figures: Figures | None = None
    """None when there are problems."""


def problems_of(error: SdloraError) -> list[Problem]:
    """The single problems in an error, each with the setting that its message names."""
    return [Problem(setting=_setting_in(message), message=message) for message in _messages(error)]


def _messages(error: SdloraError) -> Iterator[str]:
    if not isinstance(error, ConfigError):
        yield str(error)
        return
    named = error.source if _SETTING.fullmatch(error.source) else ""
    for problem in error.problems:
        yield f"{named}: {problem}" if named else problem


def _setting_in(message: str) -> str | None:
    known = {setting.name for setting in schema.settings(TrainConfig)}
    return next((match[0] for match in _SETTING.finditer(message) if match[0] in known), None)
