"""Runs side by side: what they have in common, where their settings differ, how they went. `sdlora compare`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from sdlora import atomic
from sdlora.config import schema
from sdlora.errors import ConfigError
from sdlora.launch.runs import RunHandle
from sdlora.runs.curves import Curves, Points, smoothed, thin_out
from sdlora.words import duration_in_words, size_in_words

_PICTURE_PX = 256
_SMOOTHING = 0.3
_CURVE_POINTS = 200
_NOT_COMPARED = ("name", "outputs.folder", "images.cache_folder")
"""Settings that differ between any two runs and say nothing about them."""
_SCORES = ("likeness", "adherence_of_base", "diversity", "leak", "burned")


@dataclass(frozen=True)
class ComparedRun:
    """One run, read once."""

    label: str
    folder: Path
    settings: dict[str, Any]
    status: str
    step: int
    curves: Curves
    adapter: Path | None
    """The newest adapter file."""
    previews: dict[tuple[str, int], dict[int, Path]]
    """By prompt and seed, by step."""
    scores: dict[str, float]
    """Of the recommended checkpoint, where the run was evaluated."""

    @classmethod
    def read(cls, handle: RunHandle, label: str) -> ComparedRun:
        """Raises ConfigError when the run's settings can't be read."""
        config, state, curves = handle.config(), handle.state(), Curves()
        curves.read(handle.files.events)
        seeds = [config.previews.seed + index if one.seed is None else one.seed
                 for index, one in enumerate(config.previews.parsed)]  # fmt: skip
        previews: dict[tuple[str, int], dict[int, Path]] = {}
        for image in handle.previews():
            if image.prompt_index < len(seeds):
                key = (config.previews.parsed[image.prompt_index].prompt, seeds[image.prompt_index])
                previews.setdefault(key, {})[image.step] = image.path
        files = handle.adapter_files()
        settings = {name: value for name, value in schema.flatten(config).items() if name not in _NOT_COMPARED}
        adapter = files[-1].path if files else None
        return cls(
            label, handle.folder, settings, state.status, state.step, curves, adapter, previews, _scores(handle.folder)
        )

    @property
    def facts(self) -> dict[str, str]:
        """How it went, in words."""
        measured = self.curves.validations
        best = min(measured, key=lambda each: each.relative_loss, default=None)
        seconds = sum(self.curves.seconds)
        recent = list(self.curves.losses[-50:])
        told = {
            "status": f"{self.status}, step {self.step:,}",
            "loss, mean of the last 50 steps": f"{sum(recent) / len(recent):.4f}" if recent else "",
            "held-out loss over the base's, last": f"{measured[-1].relative_loss:.4f}" if measured else "",
            "the best, and where": f"{best.relative_loss:.4f} at step {best.step:,}" if best else "",
            "time of the steps": duration_in_words(seconds) if seconds else "",
            "seconds a step": f"{seconds / len(self.curves.seconds):.3g}" if seconds else "",
            "adapter": size_in_words(self.adapter.stat().st_size) if self.adapter else "",
        }
        return told | {name.replace("_", " "): f"{value:.3f}" for name, value in self.scores.items()}


@dataclass(frozen=True)
class Comparison:
    """Two or more runs."""

    runs: tuple[ComparedRun, ...]

    @property
    def facts(self) -> list[tuple[str, list[str]]]:
        """How each went, one line a fact; what is known of none is left out."""
        told = [run.facts for run in self.runs]
        names = dict.fromkeys(name for one in told for name in one)
        rows = [(name, [one.get(name, "") for one in told]) for name in names]
        return [(name, values) for name, values in rows if any(values)]

    @property
    def differences(self) -> list[tuple[str, list[str]]]:
        """Settings that are not the same in all runs, with each one's value as YAML writes it."""
        rows = schema.differing([run.settings for run in self.runs])
        return [(name, ["" if value is schema.ABSENT else _plain(value) for value in values]) for name, values in rows]

    @property
    def prompts(self) -> list[tuple[str, int]]:
        """Prompts with seeds that at least two runs have previews of; with none in common, those of any."""
        asked = dict.fromkeys(key for run in self.runs for key in run.previews)
        common = [key for key in asked if sum(key in run.previews for run in self.runs) > 1]
        return common or list(asked)

    def as_html(self) -> str:
        """One page with everything inside, to be sent to somebody: it loads nothing."""
        from jinja2 import Environment, PackageLoader

        page = Environment(loader=PackageLoader("sdlora.launch"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return page.get_template("comparison.html").render(
            runs=self.runs, facts=self.facts, differences=self.differences, charts=self._charts(), rows=self._pictures()
        )

    def write(self, path: Path) -> None:
        """Write that page."""
        atomic.write_text(path, self.as_html())

    def _charts(self) -> list[tuple[str, list[str], str, str, str]]:
        """Title, an SVG path for each run, and the scale's lowest and highest value and last step, in words."""
        losses = [
            smoothed(run.curves.steps, run.curves.losses, _SMOOTHING, _CURVE_POINTS) if run.curves.steps else []
            for run in self.runs
        ]
        validations = []
        for run in self.runs:
            told = run.curves.validations
            validations.append(thin_out([one.step for one in told], [one.relative_loss for one in told]))
        named = (("Loss (smoothed)", losses), ("Held-out loss over the base model's", validations))
        return [(title, *_drawn(curves)) for title, curves in named if any(curves)]

    def _pictures(self) -> list[tuple[str, int, list[tuple[str, list[tuple[str, str] | None]]]]]:
        """For each prompt and seed rows of pictures, one a run with its caption: the newest, then those by step."""
        rows = []
        for prompt, seed in self.prompts:
            previews = [run.previews.get((prompt, seed), {}) for run in self.runs]
            inside = {path: _inside(path) for one in previews for path in one.values()}

            def shown(steps: Sequence[int | None], inside: Any = inside, previews: Any = previews) -> list[Any]:
                paths = [one.get(step) for one, step in zip(previews, steps, strict=True)]
                return [
                    (f"step {step:,}", inside[path]) if path and inside[path] else None
                    for step, path in zip(steps, paths, strict=True)
                ]

            all_steps = sorted({step for one in previews for step in one}, reverse=True)
            newest = ("newest", shown([max(one, default=None) for one in previews]))
            rows.append(
                (prompt, seed, [newest, *((f"step {step:,}", shown([step] * len(previews))) for step in all_steps)])
            )
        return rows


def compare(folders: Sequence[Path | str]) -> Comparison:
    """Read runs to be looked at side by side. Raises ConfigError for what is no run, or the same one twice."""
    handles: list[RunHandle] = []
    problems = []
    for folder in folders:
        try:
            handle = RunHandle(Path(folder).expanduser().resolve())
            handle.config()
            handles.append(handle)
        except ConfigError as error:
            problems.append(str(error))
    named_twice = {str(one.folder) for one in handles if handles.count(one) > 1}
    problems += [f"{folder} is named twice" for folder in sorted(named_twice)]
    if len(folders) < 2:
        problems.append("name at least two runs")
    if problems:
        raise ConfigError("what is to be compared", problems)
    names = [handle.name for handle in handles]
    labels = [name if names.count(name) == 1 else f"{handle.folder.parent.name}/{name}"
              for name, handle in zip(names, handles, strict=True)]  # fmt: skip
    return Comparison(tuple(ComparedRun.read(handle, label) for handle, label in zip(handles, labels, strict=True)))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _scores(folder: Path) -> dict[str, float]:
    """Scores of the recommended checkpoint in `evaluation/evaluation.json`, nothing without a sound one."""
    try:
        told = json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
        label = told["recommendation"]["label"]
        (chosen,) = (one for one in told["checkpoints"] if one["label"] == label)
        return {name: float(chosen[name]) for name in _SCORES if chosen.get(name) is not None}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _drawn(curves: Sequence[Points]) -> tuple[list[str], str, str, str]:
    """Paths in a box of 600 by 200, y downwards, and the scale in words."""
    values = [value for points in curves for _, value in points]
    low, high = min(values), max(values)
    last = max(step for points in curves for step, _ in points)
    paths = []
    for points in curves:
        height = (high - low) or 1
        places = [(600 * step / max(last, 1), 200 - 200 * (value - low) / height) for step, value in points]
        paths.append("".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(places)))
    return paths, f"{low:.4g}", f"{high:.4g}", f"{last:,.0f}"


def _inside(path: Path | None) -> str | None:
    """A picture as a data address, small enough to be sent around."""
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    small.thumbnail((_PICTURE_PX, _PICTURE_PX), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
