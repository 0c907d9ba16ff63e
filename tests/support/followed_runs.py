"""Trainings in this process whose events a test keeps, and which it may disturb between two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file

from sdlora.config.train import TrainConfig
from sdlora.events import Event, StepFinished
from sdlora.training.loop.run import train
from sdlora.training.loop.running import RunResult

E = TypeVar("E")


class Collector:
    """Keeps events and lets a test act between steps."""

    def __init__(self, on_step: Callable[[int], None] | None = None) -> None:
        self.events: list[Event] = []
        self._on_step = on_step

    def emit(self, event: Event) -> None:
        """Keep it, and let the test act where a step is done."""
        self.events.append(event)
        if self._on_step and isinstance(event, StepFinished):
            self._on_step(event.step)

    def close(self) -> None:
        """There is nothing to close."""

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]


def run(config: TrainConfig, on_step: Callable[[int], None] | None = None) -> tuple[RunResult, Collector]:
    """Train; on_step: called with the number of each step that is done."""
    collector = Collector(on_step)
    return train(config, [collector]), collector


def weights(path: Path) -> dict[str, Any]:
    """The tensors of an adapter file, as bytes."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
