"""Runs made by hand, with the events and the process that a test wants them to have."""

from __future__ import annotations

from sdlora.events import (
    Event,
    RunFailed,
    RunFinished,
    RunStarted,
    StepFinished,
)
from sdlora.launch.runs import RunHandle
from sdlora.processes import ProcessRecord
from sdlora.sinks.jsonl import JsonlSink


def write(handle: RunHandle, *events: Event) -> None:
    sink = JsonlSink(handle.files.events)
    for event in events:
        sink.emit(event)
    sink.close()


def own(handle: RunHandle, process_id: int) -> ProcessRecord:
    """Say that a process trains this run."""
    record = ProcessRecord.of(process_id, events=handle.files.events, log=handle.files.log)
    record.write(handle.files.process)
    return record


def began(first_step: int = 0, total: int = 100, at: float = 0.0) -> RunStarted:
    return RunStarted(
        time=at,
        name="fox",
        folder="fox",
        process_id=1,
        total_steps=total,
        first_step=first_step,
        trainable_parameters=1,
        total_parameters=2,
    )


def step(number: int, at: float = 0.0, seconds: float = 0.5) -> StepFinished:
    return StepFinished(
        time=at,
        step=number,
        epoch=0,
        loss=0.25,
        learning_rates={"unet": 1e-4},
        gradient_norm=1.0,
        seconds=seconds,
        memory_gib=1.5,
    )


COMPLETED = RunFinished(step=100, reason="completed", adapter_path="fox.safetensors", seconds=1.0)


STOPPED = RunFinished(step=7, reason="stopped", adapter_path="step_7.safetensors", seconds=1.0)


FAILED = RunFailed(step=3, message="the loss is nan")
