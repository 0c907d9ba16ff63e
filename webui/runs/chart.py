"""Loss curves as inline SVG: a few hundred points whatever the run's length, readable in light, dark and greyscale.

Plotly was tried in its place: Gradio makes its plot anew at each update, so zoom and hover are lost every second while
a run trains; it brings 4.6 MB of script, has no words for screen readers and stays white on a dark page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sdlora.runs.curves import MAX_POINTS, Curves, Points, smoothed, thin_out
from webui.templating import macros

_HTML = macros("chart.html")
_READOUT_POINTS = 120
NO_LOSS = "These runs have no losses to show."
_CLIPPED_SHARE = 0.995
"""Losses above this share of all are left out of the scale: one spike must not flatten the curve."""
_FLAT = 1e-6
"""Share of the highest value below which differences are rounding."""
_SMALLEST = 1e-8
_RATE_HEIGHT = 0.94
"""Of the height of the chart, for the highest learning rate."""


@dataclass(frozen=True)
class Box:
    """The SVG's size and the part of it that has curves in it, in its own units."""

    width: int = 860
    height: int = 340
    left: int = 58
    right: int = 802
    top: int = 14
    bottom: int = 292


@dataclass(frozen=True)
class Curve:
    """One run's losses by step, with its validations and its learning rate."""

    label: str
    steps: Sequence[int]
    losses: Sequence[float]
    validations: Points = field(default_factory=list)
    rates: Sequence[float] = ()
    """Learning rates at `steps`, of the part trained first; none for no line."""

    @classmethod
    def of(cls, label: str, curves: Curves) -> Curve:
        """The curve of what a run has told so far."""
        # Another page's request may be adding a step to these very arrays: up to this count they are whole.
        count = len(curves.steps)
        rates = next(iter(curves.rates.values()), ())[:count]
        validations = [(float(event.step), event.loss) for event in curves.validations]
        return cls(label, curves.steps[:count], curves.losses[:count], validations, rates)

    def between(self, first: float, last: float) -> Curve:
        """The part of it from one step to another."""
        start, end = np.searchsorted(self.steps, [first, last + 1])
        kept = slice(int(start), int(end))
        validations = [point for point in self.validations if first <= point[0] <= last]
        return Curve(self.label, self.steps[kept], self.losses[kept], validations, self.rates[kept])


@dataclass(frozen=True)
class ChartOptions:
    """How a person wants the chart: smoothing, scale, learning rate, and which steps."""

    smoothing: float = 0.3
    """0 shows the losses as they are, 1 their mean over half the run."""
    log_scale: bool = False
    with_rate: bool = True
    first_step: int = 0
    last_step: int | None = None
    """The stretch that is looked at, None: up to the newest step."""


@dataclass(frozen=True)
class _Chart:
    """Everything that the template needs, in the SVG's units."""

    box: Box
    words: str
    legend: list[tuple[str, str]]
    first_step: int
    last_step: int
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    curves: list[tuple[str, Points]]
    diamonds: list[tuple[str, float, float, str]]
    rate_ticks: list[tuple[float, str]]
    readout: str
    note: str


def chart(curves: Sequence[Curve], options: ChartOptions, nothing: str = NO_LOSS, note: str = "") -> str:
    """The chart of one run, or of several laid over each other, with a note; `nothing` where there is none to show."""
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        return str(_HTML.nothing(nothing))
    newest = max(curve.steps[-1] for curve in curves)
    last_step = newest if options.last_step is None else options.last_step
    shown = [curve.between(options.first_step, last_step) for curve in curves]
    shown = [curve for curve in shown if len(curve.steps)]
    if not shown:
        return str(_HTML.nothing(f"No step between {options.first_step} and {last_step}."))
    raw = [thin_out(curve.steps, curve.losses) for curve in shown]
    smooth = [smoothed(curve.steps, curve.losses, options.smoothing) for curve in shown]
    scale = _Scale.around(raw, [*smooth, *(curve.validations for curve in shown)], options, last_step)
    lines, rate_ticks = _lines(shown, raw, smooth, scale, options)
    return str(
        _HTML.chart(
            _Chart(
                box=scale.box,
                words=describe(shown, smooth),
                legend=_legend(shown, options),
                first_step=options.first_step,
                last_step=last_step,
                rows=scale.row_ticks(),
                columns=scale.column_ticks(),
                curves=lines,
                diamonds=_diamonds(shown, scale),
                rate_ticks=rate_ticks,
                readout=json.dumps(_readout(shown, smooth, scale)),
                note=note,
            )
        )
    )


def describe(curves: Sequence[Curve], smooth: Sequence[Points]) -> str:
    """What the chart shows, in words, for those who don't see it."""
    sentences = []
    for curve, points in zip(curves, smooth, strict=True):
        text = f"Loss of {curve.label}: {curve.losses[-1]:.4f} at step {curve.steps[-1]}, smoothed {points[-1][1]:.4f}"
        if curve.validations:
            step, loss = curve.validations[-1]
            text += f", validation {loss:.4f} at step {step:.0f}"
        sentences.append(text)
    return ". ".join(sentences) + "."


@dataclass(frozen=True)
class _Scale:
    first_step: float
    last_step: float
    low: float
    high: float
    is_log: bool
    box: Box = Box()

    @classmethod
    def around(cls, raw: Sequence[Points], others: Sequence[Points], options: ChartOptions, last_step: float) -> _Scale:
        losses = sorted(value for points in raw for _, value in points)
        shown = [*losses[: max(1, math.ceil(_CLIPPED_SHARE * len(losses)))]]
        # Smoothed curves and validations always fit in: they have no spikes to be cut off.
        shown += [value for points in others for _, value in points]
        low = max(_SMALLEST, min(shown)) if options.log_scale else min(shown)
        # A run with one step yet still needs a width to divide by.
        high, last = max(_SMALLEST, *shown), max(options.first_step + 1.0, float(last_step))
        if options.log_scale:
            return cls(options.first_step, last, low * 0.9, high * 1.1, True)
        # A flat curve has no height of its own, but for rounding: a share of its value, or of one, stands in.
        height = high - low if high - low > _FLAT * high else 0.0
        margin = 0.06 * (height or high or 1.0)
        return cls(options.first_step, last, max(0.0, low - margin), high + margin, False)

    def x(self, step: float) -> float:
        share = (step - self.first_step) / (self.last_step - self.first_step)
        # A tenth of a unit is less than a pixel; more digits would only make the page longer.
        return round(self.box.left + (self.box.right - self.box.left) * share, 1)

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = (math.log10(max(_SMALLEST, number)) for number in (value, low, high))
        share = (value - low) / (high - low)
        # What the scale leaves out is drawn along its edge instead of beyond the box.
        return round(self.box.top + (self.box.bottom - self.box.top) * (1 - min(1.0, max(0.0, share))), 1)

    def points(self, points: Points) -> Points:
        return [(self.x(step), self.y(value)) for step, value in points]

    def row_ticks(self) -> list[tuple[float, str]]:
        rows = log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high)
        return [(self.y(value), text) for value, text in zip(rows, tick_texts(rows), strict=True)]

    def column_ticks(self) -> list[tuple[float, str]]:
        columns = [value for value in ticks(self.first_step, self.last_step, 8) if value == int(value)]
        return [(self.x(value), f"{value:.0f}") for value in columns]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two values: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    # A hair more than the division gives: rounding must not lose a tick that lies exactly on an end.
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_texts(values: Sequence[float], unit: str = "") -> list[str]:
    """Numbers of an axis with as many digits as tell them apart."""
    texts = [f"{value:.4g}" for value in values]
    if len({*texts}) < len(texts):
        digits = max(0, math.ceil(-math.log10(values[1] - values[0]) - 1e-9))
        texts = [f"{value:.{digits}f}" for value in values]
    return [text + unit for text in texts]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values; where hardly one lies there, evenly spaced ones."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    return found if len(found) > 2 else ticks(low, high)


def _lines(
    curves: Sequence[Curve], raw: Sequence[Points], smooth: Sequence[Points], scale: _Scale, options: ChartOptions
) -> tuple[list[tuple[str, Points]], list[tuple[float, str]]]:
    """All lines with their classes, and the two ends of the learning rate's own axis."""
    # Laid over each other, raw losses of several runs would hide all the curves.
    is_alone = len(curves) == 1
    lines = []
    for index, curve in enumerate(curves):
        if is_alone:
            lines.append((f"curve-{index} curve-raw", scale.points(raw[index])))
        lines.append((f"curve-{index} curve-smooth dash-{index}", scale.points(smooth[index])))
        if len(curve.validations) > 1:
            lines.append((f"curve-{1 if is_alone else index} curve-validation", scale.points(curve.validations)))
    if not (is_alone and options.with_rate and _has_rates(curves[0])):
        return lines, []
    rates, box = np.nan_to_num(curves[0].rates), scale.box
    highest, height = float(rates.max()) or 1.0, _RATE_HEIGHT * (box.bottom - box.top)
    kept = thin_out(curves[0].steps, rates.tolist(), MAX_POINTS // 2)
    lines.append(
        ("curve-rate", [(scale.x(step), round(box.bottom - height * rate / highest, 1)) for step, rate in kept])
    )
    return lines, [(round(box.bottom - height, 1), f"{highest:.2g}"), (box.bottom, "0")]


def _has_rates(curve: Curve) -> bool:
    return len(curve.rates) > 0


def _diamonds(curves: Sequence[Curve], scale: _Scale) -> list[tuple[str, float, float, str]]:
    """Validations as diamonds: told apart from the curve without its colour."""
    return [
        (
            f"curve-{1 if len(curves) == 1 else index}",
            *scale.points([(step, value)])[0],
            f"{curve.label}: validation loss {value:.4f} at step {step:.0f}",
        )
        for index, curve in enumerate(curves)
        for step, value in curve.validations
    ]


def _legend(curves: Sequence[Curve], options: ChartOptions) -> list[tuple[str, str]]:
    if len(curves) > 1:
        return [(f"curve-{index} curve-smooth dash-{index}", curve.label) for index, curve in enumerate(curves)]
    entries = [("curve-0 curve-raw", "loss of each step"), ("curve-0 curve-smooth", "loss, smoothed")]
    if curves[0].validations:
        entries.append(("curve-1 curve-validation", "validation loss"))
    if options.with_rate and _has_rates(curves[0]):
        entries.append(("curve-rate", "learning rate (right)"))
    return entries


def _readout(curves: Sequence[Curve], smooth: Sequence[Points], scale: _Scale) -> list[list[float | str]]:
    """What the page's script shows beside the pointer: horizontal place and text of some points."""
    longest = max(range(len(curves)), key=lambda index: len(smooth[index]))
    points = smooth[longest]
    every = max(1, len(points) // _READOUT_POINTS)
    return [
        [scale.x(step), f"{curves[longest].label}, step {step:.0f}: smoothed loss {value:.4f}"]
        for step, value in points[::every]
    ]
