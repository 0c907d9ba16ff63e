"""Run folders as trainings leave them behind, made without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdlora import events
from sdlora.config import files
from sdlora.launch.runs import RunHandle, prepare

DEMO = files.load("demo.yaml")


def made(runs_folder: Path, name: str = "cats", **changes: Any) -> RunHandle:
    """A run's folder, nothing started."""
    return prepare(DEMO.model_copy(update={"name": name, **changes}), runs_folder)


def told(handle: RunHandle, *happened: events.Event) -> None:
    """Append events to a run's log, as its process would."""
    with handle.files.events.open("a", encoding="utf-8") as log:
        log.writelines(event.model_dump_json() + "\n" for event in happened)


def started(total: int = 100, first: int = 0) -> events.RunStarted:
    """A process takes the run up."""
    return events.RunStarted(
        name="cats", folder="x", process_id=1, total_steps=total, first_step=first, trainable_parameters=1,
        total_parameters=2,
    )  # fmt: skip


def step(number: int, loss: float = 0.1, seconds: float = 0.5) -> events.StepFinished:
    """A step is done."""
    return events.StepFinished(
        step=number, epoch=0, loss=loss, learning_rates={"unet": 1e-4}, gradient_norm=1.0, seconds=seconds,
        memory_gib=1.0,
    )  # fmt: skip
