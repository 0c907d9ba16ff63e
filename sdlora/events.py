"""What a run tells: one typed stream of events, consumed by sinks (terminal, file, TensorBoard, web page)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sdlora.errors import ConfigError


class _Event(BaseModel):
    # JSON has no NaN: the loss of a run that diverges must not make its own event unreadable.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    time: float = Field(default_factory=time.time)
    """Seconds since the epoch."""


class RunStarted(_Event):
    kind: Literal["run_started"] = "run_started"
    name: str
    folder: str
    process_id: int
    total_steps: int
    first_step: int
    """Steps already done when the run began: above 0 after a resume."""
    trainable_parameters: int
    total_parameters: int


class Progress(_Event):
    kind: Literal["progress"] = "progress"
    stage: str
    """What is going on, for example "caching images"."""
    done: int
    total: int


class StepFinished(_Event):
    kind: Literal["step_finished"] = "step_finished"
    step: int
    """Number of optimizer updates done so far."""
    epoch: int
    loss: float
    learning_rates: dict[str, float]
    gradient_norm: float
    weight_norm: float | None = None
    """Largest norm of a layer's update before optimization.max_weight_norm cut it; None where that is off."""
    seconds: float
    """Time of this step."""
    memory_gib: float
    """Peak memory: of the card if there is one, of the process otherwise."""


class Validated(_Event):
    kind: Literal["validated"] = "validated"
    step: int
    loss: float
    base_loss: float
    relative_loss: float
    """loss / base_loss: below 1 the adapter predicts held-out images better than the base model."""
    is_best: bool


class CheckpointSaved(_Event):
    kind: Literal["checkpoint_saved"] = "checkpoint_saved"
    step: int
    path: str


class PreviewReady(_Event):
    kind: Literal["preview_ready"] = "preview_ready"
    step: int
    paths: list[str]
    prompts: list[str]


class PictureDrawn(_Event):
    """A picture that a person asked the running trainer for."""

    kind: Literal["picture_drawn"] = "picture_drawn"
    step: int
    path: str
    prompt: str


class WarningRaised(_Event):
    kind: Literal["warning_raised"] = "warning_raised"
    message: str


class Notice(_Event):
    kind: Literal["notice"] = "notice"
    message: str


class Stopping(_Event):
    """The run was asked to stop and is about to save."""

    kind: Literal["stopping"] = "stopping"
    step: int


class RunFinished(_Event):
    kind: Literal["run_finished"] = "run_finished"
    step: int
    reason: Literal["completed", "stopped"]
    adapter_path: str | None
    adapter_sha256: str | None = None
    """Of the finished file, to tell later whether it is still what was written; None for a run that was stopped."""
    seconds: float


class RunFailed(_Event):
    kind: Literal["run_failed"] = "run_failed"
    step: int
    message: str


class CommandFinished(_Event):
    """How a command that isn't a training ended (SDLORA_EVENTS)."""

    kind: Literal["command_finished"] = "command_finished"
    exit_code: int
    error: str | None


Event = (
    RunStarted
    | Progress
    | StepFinished
    | Validated
    | CheckpointSaved
    | PreviewReady
    | PictureDrawn
    | WarningRaised
    | Notice
    | Stopping
    | RunFinished
    | RunFailed
    | CommandFinished
)

_PARSER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


class EventSink(Protocol):
    """Consumes events: a terminal, a file, a page. One that raises is detached, unless it is `fatal`."""

    def emit(self, event: Event) -> None:
        """Take one event; called in the order in which they happen."""

    def close(self) -> None:
        """Flush and let go of resources."""


def checked_sinks(sinks: Sequence[EventSink]) -> tuple[EventSink, ...]:
    """The sinks that a caller handed in. Raises ConfigError for what is no list of sinks, before a run begins."""
    listed = tuple(sinks) if isinstance(sinks, Iterable) else None
    if listed is None or not all(callable(getattr(each, name, None)) for each in listed for name in ("emit", "close")):
        raise ConfigError(
            "sinks", [f"must be a list of objects with emit and close, such as [MySink()]; got {sinks!r}"]
        )
    return listed


def parse_event(line: str | bytes) -> Event:
    """Turn one line of events.jsonl back into its event. Raises pydantic.ValidationError on anything else."""
    return _PARSER.validate_json(line)


class EventStream:
    """Hands each event to every sink. A sink that fails is reported once to the others and detached.

    A sink with `fatal = True` (the run's own events.jsonl) is not forgiven: its error ends the run.
    """

    def __init__(self, sinks: list[EventSink]) -> None:
        self.sinks = list(sinks)

    def emit(self, event: Event) -> None:
        """Send one event to all sinks."""
        for sink in list(self.sinks):
            try:
                sink.emit(event)
            except Exception as error:
                if getattr(sink, "fatal", False):
                    raise
                # Taken out first, so that it isn't told of its own failure.
                self.sinks.remove(sink)
                self.emit(WarningRaised(message=f"{type(sink).__name__} failed and is switched off: {error}"))

    def warn(self, message: str) -> None:
        """Tell of something that went wrong or will, and that the run goes on all the same."""
        self.emit(WarningRaised(message=message))

    def notice(self, message: str) -> None:
        """Tell of something worth knowing."""
        self.emit(Notice(message=message))

    def progress(self, stage: str, done: int, total: int) -> None:
        """Send how far a stage has come."""
        self.emit(Progress(stage=stage, done=done, total=total))

    def close(self) -> None:
        """Close all sinks; nothing may be sent any more."""
        for sink in self.sinks:
            sink.close()
