"""Likeness against adherence of each checkpoint, as inline SVG with a link to a picture over each point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdlora.evaluation.report import Evaluation, Scores
from webui.runs.chart import Box, tick_texts, ticks
from webui.templating import macros

_HTML = macros("evaluation.html")
_BOX = Box(width=560, height=340, left=56, right=520, top=40, bottom=288)
_MARGIN = 0.08
"""Of the span between the lowest and the highest value, left free at each side."""


@dataclass(frozen=True)
class Picture:
    """What is seen over a point, and what its press opens."""

    small: Path
    file: Path


@dataclass(frozen=True)
class Point:
    """A checkpoint's place in the chart, in the SVG's units, and what is said of it."""

    x: float
    y: float
    name: str
    words: str
    kind: str
    """base, checkpoint or recommended."""
    picture: Picture | None
    name_y: float | None = None
    """Where its name stands; None where others leave no room."""

    @property
    def left(self) -> float:
        """Percent of the chart's width."""
        return round(100 * self.x / _BOX.width, 2)

    @property
    def top(self) -> float:
        """Percent of the chart's height."""
        return round(100 * self.y / _BOX.height, 2)


@dataclass(frozen=True)
class Drawing:
    """Everything that the template needs."""

    box: Box
    words: str
    points: Sequence[Point]
    columns: Sequence[tuple[float, str]]
    rows: Sequence[tuple[float, str]]
    line: str
    """From checkpoint to checkpoint, in the order of training."""


def trade_off(found: Evaluation, pictures: Mapping[str, Picture]) -> str:
    """The chart. pictures: one by label, where there is one."""
    measured = [one for one in (found.base, *found.checkpoints) if one.adherence_of_base is not None]
    if len(measured) < 2:
        return str(_HTML.no_trade_off())
    across = _Axis.around([one.likeness for one in measured], _BOX.left, _BOX.right)
    up = _Axis.around([one.adherence_of_base or 0.0 for one in measured], _BOX.bottom, _BOX.top)
    points = [
        Point(
            across.place(one.likeness),
            up.place(one.adherence_of_base or 0.0),
            "base" if one.step is None and one is found.base else one.label.removeprefix("step "),
            _in_words(one),
            _kind(one, found),
            pictures.get(one.label),
        )
        for one in measured
    ]
    columns, rows = ticks(across.low, across.high, 6), ticks(up.low, up.high, 5)
    trained = [point for point, one in zip(points, measured, strict=True) if one is not found.base]
    return str(
        _HTML.trade_off(
            Drawing(
                box=_BOX,
                words="; ".join(_in_words(one) for one in measured),
                points=_named(points),
                columns=list(zip(map(across.place, columns), tick_texts(columns), strict=True)),
                rows=list(zip(map(up.place, rows), tick_texts([100 * value for value in rows], "%"), strict=True)),
                line=" ".join(f"{point.x},{point.y}" for point in trained),
            )
        )
    )


def _named(points: Sequence[Point]) -> list[Point]:
    """The points with places for their names, above or below, where these hide no others; the recommended first."""
    taken: list[tuple[float, float]] = []
    named = {}
    for point in sorted(points, key=lambda each: each.kind != "recommended"):
        gap = 8 if point.kind == "recommended" else 0
        places = (point.y - 12 - gap, point.y + 20 + gap)
        free = [y for y in places if not any(abs(x - point.x) < 26 and abs(y - other) < 13 for x, other in taken)]
        taken += [(point.x, y) for y in free[:1]]
        named[point.words] = replace(point, name_y=free[0] if free else None)
    return [named[point.words] for point in points]


def _in_words(one: Scores) -> str:
    return f"{one.label}: likeness {one.likeness:.3f}, adherence {one.adherence_of_base or 0.0:.0%} of the base"


def _kind(one: Scores, found: Evaluation) -> str:
    if one is found.base:
        return "base"
    return "recommended" if one.label == found.recommendation.label else "checkpoint"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        # Values that are all the same have no span of their own.
        margin = _MARGIN * (high - low or abs(high) or 1.0)
        return cls(low - margin, high + margin, start, end)

    def place(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 1)
