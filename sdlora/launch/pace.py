"""How long a run will take, by what runs of the same size took on this machine; nothing is guessed without one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sdlora.config.schema import flatten
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.events import StepFinished
from sdlora.launch.runs import RunHandle
from sdlora.runs.event_log import iterate_backwards
from sdlora.runs.state import MIN_STEPS_FOR_SPEED

_STEPS_AVERAGED = 50
_DECISIVE = (
    "base_model.model",
    "base_model.precision",
    "base_model.quantization",
    "images.resolution",
    "captions.max_tokens",
    "adapter.algorithm",
    "adapter.layers",
    "adapter.text_encoder",
    "adapter.dora",
    "optimization.batch_size",
    "optimization.accumulation",
    "optimization.precision",
    "optimization.gradient_checkpointing",
    "optimization.device",
    "optimization.threads",
)
"""Settings on which the time of a step depends; the others move it by little."""


@dataclass(frozen=True)
class Pace:
    """The time of a step, as it was measured."""

    seconds_per_step: float
    run: str
    """Name of the run in which it was."""


class Paces:
    """Measured paces of runs, each read once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[str, Any], float] | None] = {}

    def find(self, config: TrainConfig, runs: Iterable[RunHandle]) -> Pace | None:
        """The pace of the first run whose steps were of the same kind, if there is one."""
        wanted = _decisive(config)
        for handle in runs:
            known = self._measure(handle)
            if known is not None and known[0] == wanted:
                return Pace(known[1], handle.name)
        return None

    def _measure(self, handle: RunHandle) -> tuple[dict[str, Any], float] | None:
        key = f"{handle.folder}|{handle.created_at}"
        if self._known.get(key) is None:  # a run that had too few steps may have more now
            seconds = _seconds_per_step(handle)
            try:
                self._known[key] = None if seconds is None else (_decisive(handle.config()), seconds)
            except ConfigError:
                self._known[key] = None
        return self._known[key]


def _seconds_per_step(handle: RunHandle) -> float | None:
    steps = (event for event in iterate_backwards(handle.files.events) if isinstance(event, StepFinished))
    newest = list(islice(steps, _STEPS_AVERAGED))
    if not newest or newest[0].step < MIN_STEPS_FOR_SPEED:
        return None
    return sum(event.seconds for event in newest) / len(newest)


def _decisive(config: TrainConfig) -> dict[str, Any]:
    values = flatten(config)
    return {name: values[name] for name in _DECISIVE}
