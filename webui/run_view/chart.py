"""Loss curves as inline SVG: a few hundred points whatever the run's length, readable in light, dark and greyscale.

Colours come from page classes (`curve-0` ... in runs.css), so that one drawing serves both themes.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from webui.run_view.curves import Curves

MAX_POINTS = 500
WIDTH, HEIGHT = 860, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 58, 14, 48
_CLIPPED_SHARE = 0.995
"""Losses above this share of all are left out of the scale: one spike must not flatten the curve."""
_SMALLEST = 1e-8

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One run's curve."""

    label: str
    steps: Sequence[int]
    losses: Sequence[float]
    validations: Points = ()  # type: ignore[assignment]
    rates: Points = ()  # type: ignore[assignment]
    """Learning rate by step, of the UNet's adapter."""

    @classmethod
    def of(cls, label: str, curves: Curves) -> Curve:
        """The curve of what a run has told so far."""
        count = len(curves.seconds)
        rates = [
            (float(step), next(iter(rate.values()), 0.0))
            for step, rate in zip(curves.steps[:count], curves.rates[:count], strict=True)
        ]
        validations = [(float(event.step), event.loss) for event in curves.validations]
        return cls(label, curves.steps[:count], curves.losses[:count], validations, rates)


@dataclass(frozen=True)
class ChartOptions:
    """What a person chose to see."""

    smoothing: float = 0.3
    """0 shows the losses as they are, 1 their mean over half the run."""
    log_scale: bool = False
    with_rate: bool = True


def draw(curves: Sequence[Curve], options: ChartOptions) -> str:
    """The chart of one run, or of several laid over each other, as HTML; says so when there is nothing to draw."""
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        return '<div class="empty-state"><p>No loss yet. The curve begins with the first training step.</p></div>'
    alone = len(curves) == 1
    raw = [thin_out(curve.steps, curve.losses) for curve in curves]
    smooth = [smoothed(curve.steps, curve.losses, options.smoothing) for curve in curves]
    validations = [list(curve.validations) for curve in curves]
    scale = _Scale.around(raw, smooth + validations, options.log_scale)
    parts = [_axes(scale)]
    for index, curve in enumerate(curves):
        if alone:
            parts.append(_path(raw[index], scale, f"curve-{index} curve-raw"))
        parts.append(_path(smooth[index], scale, f"curve-{index} curve-smooth dash-{index}"))
        parts += _validation(curve.label, validations[index], scale, 1 if alone else index)
    if alone and options.with_rate and curves[0].rates:
        parts.append(_rate(curves[0].rates, scale))
    label = html.escape(describe(curves, smooth), quote=True)
    points = html.escape(json.dumps(_readout(curves, smooth, scale)), quote=True)
    return (
        f'<figure class="loss-chart">{_legend(curves, options)}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" data-points="{points}">'
        f'{"".join(parts)}<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="-9" x2="-9"/></svg>'
        f'<figcaption class="readout" aria-hidden="true">&nbsp;</figcaption></figure>'
    )


def thin_out(steps: Sequence[int], values: Sequence[float], limit: int = MAX_POINTS) -> Points:
    """At most `limit` points that keep each bin's lowest and highest value."""
    if len(steps) <= limit:
        return [(float(step), value) for step, value in zip(steps, values, strict=True)]
    points: Points = []
    for places, inside in _bins(steps, values, limit // 2):
        kept = sorted({int(inside.argmin()), int(inside.argmax())})
        points += [(float(places[index]), float(inside[index])) for index in kept]
    return points


def smoothed(steps: Sequence[int], values: Sequence[float], amount: float, limit: int = MAX_POINTS) -> Points:
    """Means of at most `limit` bins, averaged with their neighbours on both sides alike (no delay)."""
    bins = _bins(steps, values, min(limit, len(steps)))
    positions = np.array([places.mean() for places, _ in bins])
    means = np.array([inside.mean() for _, inside in bins])
    width = amount * len(bins) / 8
    if width >= 0.5:
        reach = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
        kernel = np.exp(-0.5 * (reach / width) ** 2)
        weight = np.convolve(np.ones(len(means)), kernel)
        cut = slice(len(reach) // 2, len(reach) // 2 + len(means))
        means = np.convolve(means, kernel)[cut] / weight[cut]
    return [(float(step), float(mean)) for step, mean in zip(positions, means, strict=True)]


def _bins(steps: Sequence[int], values: Sequence[float], count: int) -> list[tuple[Any, Any]]:
    """Steps and values in so many parts, one after another."""
    return list(zip(np.array_split(np.asarray(steps), count), np.array_split(np.asarray(values), count), strict=True))


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
    last_step: float
    low: float
    high: float
    is_log: bool

    @classmethod
    def around(cls, raw: Sequence[Points], others: Sequence[Points], is_log: bool) -> _Scale:
        losses = sorted(value for points in raw for _, value in points)
        steps = [step for points in [*raw, *others] for step, _ in points]
        shown = [*losses[: max(1, math.ceil(_CLIPPED_SHARE * len(losses)))]]
        shown += [value for points in others for _, value in points]
        low, high = max(_SMALLEST, min(shown)) if is_log else min(shown), max(_SMALLEST, *shown)
        if is_log:
            return cls(max(1.0, *steps), low * 0.9, high * 1.1, True)
        margin = 0.06 * (high - low or high or 1.0)
        return cls(max(1.0, *steps), max(0.0, low - margin), high + margin, False)

    def x(self, step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / self.last_step

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = (math.log10(max(_SMALLEST, number)) for number in (value, low, high))
        share = (value - low) / (high - low)
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(1.0, max(0.0, share)))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two values: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]


def _axes(scale: _Scale) -> str:
    rows = log_ticks(scale.low, scale.high) if scale.is_log else ticks(scale.low, scale.high)
    lines = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{scale.y(value):.1f}" y2="{scale.y(value):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{scale.y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        for value in rows
    ]
    columns = [value for value in ticks(0, scale.last_step, 8) if value == int(value)]
    lines += [
        f'<text x="{scale.x(value):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        for value in columns
    ]
    lines.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    return "".join(lines)


def _path(points: Points, scale: _Scale, classes: str) -> str:
    if len(points) == 1:
        return f'<circle class="{classes}" cx="{scale.x(points[0][0]):.1f}" cy="{scale.y(points[0][1]):.1f}" r="2.5"/>'
    line = " ".join(f"{scale.x(step):.1f},{scale.y(value):.1f}" for step, value in points)
    return f'<polyline class="{classes}" points="{line}"/>'


def _validation(label: str, points: Points, scale: _Scale, index: int) -> list[str]:
    """Diamonds, joined by a dashed line: told apart from the curve without its colour."""
    if not points:
        return []
    diamonds = []
    for step, value in points:
        x, y = scale.x(step), scale.y(value)
        title = html.escape(f"{label}: validation loss {value:.4f} at step {step:.0f}")
        shape = f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"
        diamonds.append(f'<path class="curve-{index} diamond" d="{shape}"><title>{title}</title></path>')
    joined = [_path(points, scale, f"curve-{index} curve-validation")] if len(points) > 1 else []
    return joined + diamonds


def _rate(rates: Points, scale: _Scale) -> str:
    """The learning rate on an axis of its own at the right, from 0 to its highest value."""
    highest = max(rate for _, rate in rates) or 1.0
    kept = thin_out([int(step) for step, _ in rates], [rate for _, rate in rates], 200)
    bottom, height = HEIGHT - _BOTTOM, HEIGHT - _TOP - _BOTTOM
    line = " ".join(f"{scale.x(step):.1f},{bottom - 0.94 * height * rate / highest:.1f}" for step, rate in kept)
    top = bottom - 0.94 * height
    return (
        f'<polyline class="curve-rate" points="{line}"/>'
        f'<text class="rate" x="{WIDTH - 2}" y="{top + 4:.1f}" text-anchor="end">{highest:.2g}</text>'
        f'<text class="rate" x="{WIDTH - 2}" y="{bottom + 4}" text-anchor="end">0</text>'
    )


def _legend(curves: Sequence[Curve], options: ChartOptions) -> str:
    if len(curves) > 1:
        entries = [(f"curve-{index} curve-smooth dash-{index}", curve.label) for index, curve in enumerate(curves)]
    else:
        entries = [("curve-0 curve-raw", "loss of each step"), ("curve-0 curve-smooth", "loss, smoothed")]
        if curves[0].validations:
            entries.append(("curve-1 curve-validation", "validation loss"))
        if options.with_rate and curves[0].rates:
            entries.append(("curve-rate", "learning rate (right)"))
    shown = "".join(
        f'<span><svg class="key" viewBox="0 0 28 8" aria-hidden="true"><line class="{classes}" x1="0" x2="28" y1="4" '
        f'y2="4"/></svg>{html.escape(label)}</span>'
        for classes, label in entries
    )
    return f'<div class="legend">{shown}</div>'


def _readout(curves: Sequence[Curve], smooth: Sequence[Points], scale: _Scale) -> list[list[float | str]]:
    """What the page's script shows beside the pointer: horizontal place and text of at most 120 points."""
    longest = max(range(len(curves)), key=lambda index: len(smooth[index]))
    points = smooth[longest]
    every = max(1, len(points) // 120)
    return [
        [round(scale.x(step), 1), f"{curves[longest].label}, step {step:.0f}: smoothed loss {value:.4f}"]
        for step, value in points[::every]
    ]
