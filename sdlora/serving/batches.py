"""Images of many requests in shared passes: one thread generates, whoever asks waits on a future.

The image that has waited longest says which others may come along: those of the same size, sampler and steps, in the
order they came. Each has its own prompt, seed, adapters and weights (the idea of S-LoRA, Sheng et al. 2023: one base
model stays, adapters are small and come and go).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from sdlora.config.generate import GenerateConfig
from sdlora.config.serve import ServeConfig
from sdlora.errors import SdloraError
from sdlora.generation.generate import Generator
from sdlora.generation.generated import GeneratedImage
from sdlora.generation.request.requests import fit_together
from sdlora.words import count

log = logging.getLogger("sdlora.serving")

Images = list[GeneratedImage]
_REMEMBERED = 0.8
"""Share of the past in the running mean of the seconds that a pixel's step takes."""


class FullError(SdloraError):
    """Too many images wait already; `seconds` is when to ask again."""

    def __init__(self, waiting: int, seconds: int) -> None:
        self.seconds = seconds
        waits = f"{count(waiting, 'image')} {'waits' if waiting == 1 else 'wait'}"
        super().__init__(f"{waits} already; ask again in {count(seconds, 'second')}")


class UnexpectedError(SdloraError):
    """Something of ours went wrong; the log has it."""


@dataclass(eq=False)
class _Job:
    """A request's images, those that are there by their place among them."""

    num_images: int
    done: Future[Images] = field(default_factory=Future)
    images: dict[int, GeneratedImage] = field(default_factory=dict)


@dataclass(eq=False)
class _Row:
    """One image that is waited for."""

    job: _Job
    index: int
    config: GenerateConfig
    since: float


class Batches:
    """The queue in front of one loaded model.

    load: makes the generator, in the thread that generates. on_batch: told the number of images made and the seconds of
    each pass.
    """

    def __init__(
        self,
        served: ServeConfig,
        load: Callable[[], Generator],
        on_batch: Callable[[int, float], None] = lambda num_images, seconds: None,
    ) -> None:
        self._served = served
        self._load = load
        self._on_batch = on_batch
        self._rows: list[_Row] = []
        self._running: list[_Row] = []
        self._changed = threading.Condition()
        self._is_stopping = False
        self._seconds = 0.0  # for a pixel and a step, as of late
        self._thread = threading.Thread(target=self._work, name="sdlora-generates", daemon=True)
        self.generator: Generator | None = None
        """The loaded model; None before it is."""
        self.failure: Exception | None = None
        """Why there is no model, where loading it failed."""

    def start(self) -> None:
        """Begin to load the model, then to generate."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Generate nothing any more; what waits is cancelled, what runs ends at its next step."""
        with self._changed:
            self._is_stopping = True
            for row in [*self._rows, *self._running]:
                row.job.done.cancel()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def is_alive(self) -> bool:
        """Whether there is a thread that generates."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Images that wait for their turn, without those that nobody waits for any more."""
        with self._changed:
            self._forget_cancelled()
            return len(self._rows)

    def submit(self, rows: Sequence[GenerateConfig]) -> Future[Images]:
        """Have a request's images generated. To cancel the future gives up those that nobody else's pass depends on.

        Raises FullError where too many wait. The future raises SdloraError.
        """
        job, now = _Job(len(rows)), time.monotonic()
        with self._changed:
            self._forget_cancelled()
            waiting = len(self._rows)
            if waiting and waiting + len(rows) > self._served.limits.waiting_images:
                work = sum(_work(row) for row in [*self._running, *self._rows])
                raise FullError(waiting, max(1, math.ceil(work * self._seconds)))
            self._rows += [_Row(job, index, row, now) for index, row in enumerate(rows)]
            self._changed.notify()
        return job.done

    def _work(self) -> None:
        try:
            self.generator = self._load()
        except Exception as error:
            # Whatever it was: the server is there for this model alone, and ends with it.
            self.failure = error
            return
        while rows := self._next():
            began = time.monotonic()
            self._generate(rows)
            seconds = time.monotonic() - began
            made = [row for row in rows if row.index in row.job.images]
            if not made:  # given up, or none could be generated: it says nothing about how long one takes
                continue
            each = seconds / sum(_work(row) for row in made)
            self._seconds = each if not self._seconds else _REMEMBERED * self._seconds + (1 - _REMEMBERED) * each
            self._on_batch(len(made), seconds)

    def _next(self) -> list[_Row]:
        """The rows of the next pass, when there are enough or have waited long enough; none at the end."""
        with self._changed:
            self._running = []
            while not self._is_stopping:
                self._forget_cancelled()
                if not self._rows:
                    self._changed.wait()
                    continue
                first = self._rows[0]
                alike = [row for row in self._rows if fit_together(first.config, row.config)]
                left = first.since + self._served.batch_wait_ms / 1000 - time.monotonic()
                if left <= 0 or len(alike) >= self._served.batch_size:
                    self._running = alike[: self._served.batch_size]
                    self._rows = [row for row in self._rows if row not in self._running]
                    return self._running
                self._changed.wait(left)
            return []

    def _forget_cancelled(self) -> None:
        self._rows = [row for row in self._rows if not row.job.done.done()]

    def _generate(self, rows: Sequence[_Row]) -> None:
        assert self.generator is not None
        try:
            images = self.generator.generate_rows(
                [row.config for row in rows], is_cancelled=lambda: all(row.job.done.done() for row in rows)
            )
            for row, image in zip(rows, images, strict=False):  # fewer images than rows: all are cancelled
                row.job.images[row.index] = image
        except Exception as error:
            if len(rows) == 1:
                self._fail(rows[0], error)
                return
            # One that can't be generated, or too many for the memory: the others are none the worse for it.
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                if wanted := [row for row in half if not row.job.done.done()]:
                    self._generate(wanted)
            return
        for job in {row.job for row in rows}:
            if len(job.images) == job.num_images:
                with suppress(InvalidStateError):  # cancelled in this very moment
                    job.done.set_result([job.images[index] for index in range(job.num_images)])

    def _fail(self, row: _Row, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            error = UnexpectedError("there is too little memory for an image of this size; ask for a smaller one")
        elif not isinstance(error, SdloraError):
            log.error("an image could not be generated", exc_info=error)
            error = UnexpectedError("the image could not be generated; the server's log says why")
        with suppress(InvalidStateError):  # cancelled in this very moment
            row.job.done.set_exception(error)


def _work(row: _Row) -> float:
    """What an image costs, in pixels times steps."""
    config = row.config
    return float((config.width_px or 1) * (config.height_px or 1) * config.steps)
