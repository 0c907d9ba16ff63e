"""What a run's events say over time: losses, validations, learning rates, checkpoints, previews, warnings."""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdlora import events
from sdlora.events import Event
from sdlora.runs.event_log import READ_BYTES, read_events
from sdlora.runs.results import PreviewImage

MAX_POINTS = 500
"""A curve of so many points looks like one of all steps."""

Points = list[tuple[float, float]]
"""Steps with values."""


@dataclass
class Curves:
    """Grows with a run's event log. Steps that a resumed run does again replace those it had done before."""

    offset: int = 0
    """How far the log has been read, in bytes."""
    unread: int = 0
    """Bytes of the log that are still to be read."""
    # Eight bytes a value: a million steps as Python's numbers would take half a gigabyte. Other threads must slice
    # them, which copies: an array can't grow while numpy looks into it.
    steps: array[int] = field(default_factory=lambda: array("q"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    rates: dict[str, array[float]] = field(default_factory=dict)
    """By part of the model, one for each of `steps`; NaN where a step told none."""
    seconds: array[float] = field(default_factory=lambda: array("d"))
    validations: list[events.Validated] = field(default_factory=list)
    previews: list[events.PreviewReady] = field(default_factory=list)
    drawn: list[PreviewImage] = field(default_factory=list)
    """Pictures that were asked for, oldest first, numbered in that order."""
    checkpoints: list[events.CheckpointSaved] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    """Warnings and remarks: kind and text, oldest first."""

    @property
    def version(self) -> tuple[int, ...]:
        """Changes whenever something that can be shown was added."""
        return (len(self.steps), self.steps[-1] if self.steps else 0, len(self.validations), len(self.previews))

    def read(self, log: Path, at_most: int | None = None) -> None:
        """Take in what a run's event log has got since the last call, or the next `at_most` bytes of that."""
        # Reckoned from where this look ends: a last line that its writer was killed in is not waited for.
        size = log.stat().st_size if log.is_file() else 0
        self.unread = 0 if at_most is None else max(0, size - self.offset - at_most)
        while True:
            before = self.offset
            new, self.offset = read_events(log, before, at_most or READ_BYTES)
            for event in new:
                self.take(event)
            if at_most is not None or self.offset == before:
                return

    def take(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case events.RunStarted():
                self._go_back_to(event.first_step)
            case events.StepFinished():
                for part in event.learning_rates:
                    if part not in self.rates:
                        self.rates[part] = array("d", [math.nan]) * len(self.steps)
                for part, rates in self.rates.items():
                    rates.append(event.learning_rates.get(part, math.nan))
                self.losses.append(event.loss)
                self.seconds.append(event.seconds)
                self.steps.append(event.step)  # last, so that who counts the steps finds the rest
            case events.Validated():
                self.validations.append(event)
            case events.PreviewReady():
                self.previews = [*(known for known in self.previews if known.step != event.step), event]
            case events.PictureDrawn():
                self.drawn.append(PreviewImage(Path(event.path), event.step, len(self.drawn), event.prompt))
            case events.CheckpointSaved():
                self.checkpoints.append(event)
            case events.WarningRaised():
                self.messages.append(("warning", event.message))
            case events.Notice():
                self.messages.append(("notice", event.message))

    def as_csv(self) -> str:
        """One row a step: loss, validation loss, learning rates, seconds."""
        parts = list(self.rates)
        measured = {event.step: event for event in self.validations}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "loss", "validation_loss", *(f"learning_rate_{part}" for part in parts), "seconds"])
        rows = {step: index for index, step in enumerate(self.steps)}
        for step in sorted({*rows, *measured}):
            index = rows.get(step)
            validation = measured[step].loss if step in measured else ""
            if index is None:
                writer.writerow([step, "", validation, *("" for _ in parts), ""])
                continue
            rates = ["" if math.isnan(rate := self.rates[part][index]) else rate for part in parts]
            writer.writerow([step, self.losses[index], validation, *rates, self.seconds[index]])
        return text.getvalue()

    def _go_back_to(self, step: int) -> None:
        keep = sum(known <= step for known in self.steps)
        del self.steps[keep:]
        for values in (self.losses, self.seconds, *self.rates.values()):
            del values[keep:]
        self.validations = [event for event in self.validations if event.step <= step]


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
    # In bins: at most the deviation of the Gaussian is an eighth of the run, so that it spans about half of it.
    width = amount * len(bins) / 8
    if width >= 0.5:
        reach = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
        kernel = np.exp(-0.5 * (reach / width) ** 2)
        # At the ends a part of the kernel has no values under it: what was summed is divided by the weight it had.
        weight = np.convolve(np.ones(len(means)), kernel)
        # convolve's own mode `same` gives the kernel's length where that is the longer one.
        cut = slice(len(reach) // 2, len(reach) // 2 + len(means))
        means = np.convolve(means, kernel)[cut] / weight[cut]
    return [(float(step), float(mean)) for step, mean in zip(positions, means, strict=True)]


def _bins(steps: Sequence[int], values: Sequence[float], count: int) -> list[tuple[Any, Any]]:
    """Steps and values in so many parts, one after another."""
    return list(zip(np.array_split(np.asarray(steps), count), np.array_split(np.asarray(values), count), strict=True))
