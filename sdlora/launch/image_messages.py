"""What the page and the image worker say to each other: one JSON object a line.

Requests go to the worker's standard input, answers come from its standard output.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sdlora.config.generate import GenerateConfig


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Generate(_Message):
    """Generate images and save them in config.files.folder."""

    kind: Literal["generate"] = "generate"
    id: str
    config: GenerateConfig
    preview_path: str
    """Where a small JPEG of the unfinished images goes every few steps."""
    axes: list[str] = []
    """What a grid varies, as `grid.axes.parse_axes` reads it; without any it is no grid."""
    run: str | None = None
    """A grid's run, for the axis `checkpoint`."""
    most_cells: int = 0
    """Cells that a grid may have."""


class Cancel(_Message):
    """Stop generating after the current step; finished images stay."""

    kind: Literal["cancel"] = "cancel"
    id: str


Request = Generate | Cancel


class Loading(_Message):
    """The base model is being loaded for a request."""

    kind: Literal["loading"] = "loading"
    id: str


class Stepped(_Message):
    """A sampling step of the images at work is done."""

    kind: Literal["stepped"] = "stepped"
    id: str
    step: int
    total_steps: int
    image_index: int
    """Images done before the ones that are being generated."""
    num_images: int
    has_preview: bool
    """Whether the preview file is new."""


class Saved(_Message):
    """An image is finished and on disk."""

    kind: Literal["saved"] = "saved"
    id: str
    path: str
    seed: int
    labels: list[str] = []
    """The image's value along every axis of a grid."""
    warnings: list[str]


class Ended(_Message):
    """A request is over: nothing more will be said of it, and the next one may be sent."""

    kind: Literal["ended"] = "ended"
    id: str
    outcome: Literal["finished", "cancelled", "failed"]
    error: str | None = None
    sheet: str | None = None
    """A grid's contact sheet."""
    accelerator_gib: float | None = None
    """Memory that it holds on the accelerator, if there is one."""


Answer = Loading | Stepped | Saved | Ended

_REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])
_ANSWERS: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="kind")])


def parse_request(line: str | bytes) -> Request:
    """The request in a line. Raises pydantic.ValidationError on anything else."""
    return _REQUESTS.validate_json(line)


def parse_answer(line: str | bytes) -> Answer:
    """The answer in a line. Raises pydantic.ValidationError on anything else."""
    return _ANSWERS.validate_json(line)
