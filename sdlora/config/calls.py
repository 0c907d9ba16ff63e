"""What the functions of `import sdlora` are called with beside the settings of a section.

A caller's slip (a text in place of a list, a precision that there is none of) is told as a preset's would be, before
anything is loaded. What the command line has of them is checked by the same classes.
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from sdlora.config.base_model import FamilyName, Precision
from sdlora.config.mix import MixedAdapter
from sdlora.config.presets import Subject
from sdlora.config.section import Section


def _spelled(value: Any) -> Any:
    return fspath(value) if isinstance(value, PathLike) else value


def _one_alone(value: Any) -> Any:
    """One where several may stand, in a list of its own: a text would else be taken for a list of letters."""
    return [value] if isinstance(value, str | PathLike | MixedAdapter) else value


Place = Annotated[str, BeforeValidator(_spelled)]
"""A file, a folder or a name on the hub, whose two slashes a Path would make one."""
Layout = Literal["kohya", "diffusers"]
Rank = Annotated[int | None, Field(ge=1, le=4096)]


class ReadAdapter(Section):
    file: Place
    """Adapter file, or hf://owner/name[/file]."""

    family: FamilyName | None = None
    """Stable Diffusion family, for files that don't tell."""


class WrittenFile(Section):
    target: Path
    """The file to write."""

    force: bool = False
    """Replace what is there already."""


class ConvertAdapter(WrittenFile):
    source: Place
    """Adapter file, or hf://owner/name[/file]."""

    file_format: Layout
    """Whose names the layers have."""

    precision: Precision | None = None
    """Number type of the written weights; by default their own."""

    family: FamilyName | None = None
    """Stable Diffusion family, for files that don't tell."""


class SizedAdapter(WrittenFile):
    rank: Rank = None
    """Rank of every layer."""

    energy: float | None = None
    """Instead of rank: share of each layer's sum of squares to keep, for example 0.99."""

    @field_validator("energy")
    @classmethod
    def _check_size(cls, energy: float | None, info: ValidationInfo) -> float | None:
        # With the field and not the whole, so that it is told beside other fields' problems.
        problems = []
        if energy is not None and info.data.get("rank") is not None:
            problems.append("rank and energy exclude each other")
        if energy is not None and not 0 < energy <= 1:
            problems.append(f"is a share above 0 and up to 1, not {energy:g}")
        if problems:
            raise ValueError("\n".join(problems))
        return energy


class ResizeAdapter(SizedAdapter):
    source: Place
    """Adapter file, or hf://owner/name[/file]."""

    precision: Precision | None = None
    """Number type of the written weights; by default the file's own."""

    family: FamilyName | None = None
    """Stable Diffusion family, for files that don't tell."""

    @field_validator("energy")
    @classmethod
    def _is_told(cls, energy: float | None, info: ValidationInfo) -> float | None:
        if energy is None and info.data.get("rank", 0) is None:
            raise ValueError("give a rank or an energy")
        return energy


class ExtractAdapter(SizedAdapter):
    tuned: Place
    """The tuned model."""

    base: Place
    """The model that it was tuned from."""

    conv_rank: Annotated[int | None, Field(ge=0, le=4096)] = None
    """Rank of convolutions; 0 leaves them out."""

    precision: Precision = "fp16"
    """Number type of the written weights."""


class MergeAdapters(WrittenFile):
    base: Place
    """Base model that the adapters are baked into."""

    adapters: Annotated[list[MixedAdapter], BeforeValidator(_one_alone), Field(min_length=1)]
    """The adapters; one alone needs no list."""


class Suggest(Section):
    folder: Path
    """The pictures, or `builtin:` and a sample set's name."""

    subject: Subject
    """What they are to teach."""

    base: Place | None = None
    """Base model."""

    memory_gib: float | None = Field(default=None, gt=0, lt=100_000)
    """What the card has, in GiB."""

    trigger: str | None = None
    """The word for the subject."""

    @field_validator("base")
    @classmethod
    def _names_one(cls, base: str | None) -> str | None:
        if base is not None and not base.strip():
            raise ValueError("is empty")
        return base


class Resume(Section):
    run: Path
    """A run's folder."""

    accept_changes: bool = False
    """Whether images and captions may be others than they were."""


class Evaluate(Section):
    run: Path
    """A run's folder."""

    promote: bool = False
    """Make the recommended checkpoint the run's result."""


class CheckDataset(Section):
    folders: Annotated[tuple[Path, ...] | None, BeforeValidator(_one_alone)] = ()
    """Folders of images; one alone needs no list."""


class Summarise(Section):
    processes: int = Field(default=1, ge=1)
    """How many are to train together."""


class KeptAdapters(Section):
    pool_bytes: int | None = Field(default=None, ge=0)
    """Memory for adapters that are kept."""
