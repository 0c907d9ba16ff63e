"""What an evaluation found, for the terminal, for Python, for the page and as JSON. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sdlora import atomic
from sdlora.errors import RunError
from sdlora.evaluation.findings import Interval, Kind, Problem
from sdlora.runs.folder import RunFolder

REPORT = "evaluation.json"
_VERSION = 1


@dataclass(frozen=True)
class Copy:
    """A generated image that is nearly a training image; `share` is its distance over that of the nearest training
    pair, below 1."""

    image: str
    of: str
    share: float


@dataclass(frozen=True)
class Scores:
    """Scores of one checkpoint, or of the base model (no step, no file)."""

    label: str
    step: int | None
    file: str | None
    num_images: int
    """Images with the trigger, over which all but leak is averaged."""
    likeness: float
    """Mean cosine to the training images."""
    adherence: float | None
    """How well images follow their prompts without the trigger; None where no prompt has other words."""
    adherence_of_base: float | None
    """The same as a share of what the base reaches with these prompts."""
    diversity: float | None
    """Distance between seeds of one prompt, over the base's; None with a single seed."""
    leak: float | None
    """How far images of prompts without the trigger move; 1 is as far as another seed. None without such prompts."""
    saturation: float
    contrast: float
    burned: int
    """Images more saturated or of higher contrast than all training images and all of the base."""
    copies: tuple[Copy, ...]
    held_out: Interval | None = None
    """Loss on held-out images over the base's; None when none are held out."""
    content: str | None = None
    """Hash of the file's tensors: tells the checkpoint apart wherever its file lies by now; None for the base."""


@dataclass(frozen=True)
class Recommendation:
    """The checkpoint to take, and why."""

    label: str
    step: int | None
    file: str
    reasons: tuple[str, ...]
    passed_over: tuple[str, ...] = ()
    """What is wrong with others, from when on."""

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        return f"{self.label}: {', '.join(self.reasons)}" + "".join(f"; {one}" for one in self.passed_over)


@dataclass(frozen=True)
class WeightAdvice:
    """The weight to use the recommended checkpoint at, and what it is at others."""

    weight: float
    sentence: str
    tried: tuple[Scores, ...]
    """From the lowest weight on."""


@dataclass(frozen=True)
class TiedWord:
    """A phrase that stands beside the trigger in most captions, and what is left of the likeness that both bring."""

    word: str
    captions: float
    """Share of the captions that have it."""
    without: Interval | None
    """What the trigger keeps without it: near 1 it comes along unasked. None where both may bring nothing together."""
    alone: Interval | None
    """What it brings without the trigger."""

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        beside = f"'{self.word}' stands in {self.captions:.0%} of the captions"
        if self.without is None or self.alone is None:
            return f"{beside}: what was learned hardly shows with it, so nothing can be told"
        kept, brought = (f"{each.value:.0%} ({each.low:.0%} to {each.high:.0%})" for each in (self.without, self.alone))
        return f"{beside}: the trigger keeps {kept} without it, and it brings {brought} by itself"


@dataclass(frozen=True)
class TriggerPair:
    """What one trigger brings of what another was trained to bring; 1 is as much as the other's own trigger does."""

    asked: str
    other: str
    brought: Interval | None
    """None where the other trigger's own images hardly show what it learned."""
    alike: float | None
    """The same share of their training images: as much as that comes of characters that look alike."""

    @property
    def leaks(self) -> bool:
        """Whether more of the other one comes along than the two have in common."""
        return self.brought is not None and self.brought.low > max(self.alike or 0.0, 0.0)

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        if self.brought is None:
            return (
                f"'{self.asked}' against '{self.other}': what the latter learned hardly shows, so nothing can be told"
            )
        share = f"{self.brought.value:.0%} ({self.brought.low:.0%} to {self.brought.high:.0%})"
        common = "" if self.alike is None else f", and the training images of both have {self.alike:.0%} in common"
        verdict = "; it leaks" if self.leaks else ""
        return f"'{self.asked}' brings {share} of what '{self.other}' does{common}{verdict}"


@dataclass(frozen=True)
class ProblemReport:
    """Training images that are trouble, by kind, and those that stand out most."""

    worst: tuple[Problem, ...]
    by_kind: Mapping[Kind, Sequence[Problem]]
    checkpoints: tuple[str, ...]
    """Those whose losses were compared."""
    seconds: float
    files: Mapping[str, str] = field(default_factory=dict)
    """Paths of the images listed, by name."""


@dataclass(frozen=True)
class EvaluatedImage:
    """An image that was looked at."""

    label: str
    """Of the checkpoint, or `base`."""
    prompt: int
    """Its place among the prompts."""
    seed: int
    file: str
    """Path below the run's folder, with slashes."""


@dataclass(frozen=True)
class Evaluation:
    """The whole result."""

    run: Path
    features: str
    base: Scores
    checkpoints: tuple[Scores, ...]
    recommendation: Recommendation
    prompts: tuple[Mapping[str, str], ...]
    num_seeds: int
    weight_advice: WeightAdvice | None = None
    tied_words: tuple[TiedWord, ...] | None = None
    """None where nobody asked."""
    characters: tuple[TriggerPair, ...] | None = None
    """None where nobody asked."""
    problem_images: ProblemReport | None = None
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By stage."""
    generated: int = 0
    """Images made by this call; all others were there."""
    promoted: str | None = None
    """What was done about the run's result, in words."""
    finished_at: float = 0.0
    """Seconds since the epoch."""
    images: tuple[EvaluatedImage, ...] = ()
    """All images by checkpoint, prompt and seed, the base model's first."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"version": _VERSION, **asdict(self), "run": str(self.run)}

    def write(self) -> Path:
        """Write `evaluation/evaluation.json` into the run's folder; returns the file."""
        path = report_file(self.run)
        atomic.write_json(path, self.as_json(), indent=2, parents=True)
        return path


def report_file(run: Path) -> Path:
    """Where the newest report on a run lies, if there is one."""
    return RunFolder(run).evaluation / REPORT


def read(run: Path) -> Evaluation | None:
    """The newest report on a run, wherever its folder is by now; None without one.

    Raises RunError for one that can't be read.
    """
    path = report_file(run)
    try:
        found = TypeAdapter(Evaluation).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        words = "can't be read, or another version of sdlora wrote it"
        raise RunError(f"{path} {words}: evaluate {run.name} again") from None
    return replace(found, run=run)
