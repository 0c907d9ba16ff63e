"""What is being generated: requests from the page in order, single ones and grids, over the resident image worker.

All of it lives in the server, so that a reloaded page finds its request again. The web process loads no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from sdlora.config.generate import GenerateConfig
from sdlora.errors import RunError, SdloraError
from sdlora.generation.grid.run import Grid
from sdlora.launch.images import ImageProgress, WorkerMemory

Status = Literal["waiting", "queued", "loading", "drawing", "finished", "cancelled", "failed"]
"""waiting: for a training to end."""

_LOOK_SECONDS = 0.2
_TRAINING_LOOK_SECONDS = 2.0
_KEPT = 20
"""Requests kept in the list after their end."""


class Worker(Protocol):
    """What is needed of `sdlora.launch.images.ImageWorker`."""

    def submit(self, config: GenerateConfig) -> str: ...
    def submit_grid(self, config: GenerateConfig, axes: Sequence[str], *, run: Path | None = None) -> str: ...
    def poll(self, request_id: str) -> ImageProgress: ...
    def cancel(self, request_id: str) -> None: ...
    def memory(self) -> WorkerMemory | None: ...
    def release(self, *, cancel: bool = False) -> bool: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Drawing:
    """One request as the page shows it."""

    id: int
    title: str
    status: Status
    num_images: int
    is_grid: bool = False
    at_once: int = 1
    """Images that are generated together."""
    progress: ImageProgress = field(default_factory=lambda: ImageProgress("queued", 0))
    error: str | None = None
    started: float = 0.0
    """Seconds since the epoch when drawing began."""
    seconds: float = 0.0
    """Time it took, or has taken so far."""

    @property
    def images(self) -> tuple[Path, ...]:
        """Finished ones, in the order in which they were generated."""
        return self.progress.images

    @property
    def sheet(self) -> Path | None:
        """A grid's contact sheet, once it is over."""
        return self.progress.sheet

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("finished", "cancelled", "failed")

    @property
    def share_done(self) -> float:
        """From 0 to 1, by steps of all images; images of a batch advance together."""
        if self.is_over:
            return 1.0
        now = self.progress
        step = now.step / now.total_steps if now.total_steps else 0.0
        return min(1.0, (len(self.images) + step * self.drawn_now) / (self.num_images or 1))

    @property
    def drawn_now(self) -> int:
        """How many images the current steps are for."""
        return min(self.at_once, self.num_images - len(self.images))


@dataclass
class _Request:
    """A drawing, and how the worker is asked for it."""

    drawing: Drawing
    ask: Callable[[], str]
    worker_id: str | None = None
    is_cancelled: bool = False


class Drawings:
    """The requests of this server. Every method returns at once; a thread follows the worker while there is work."""

    def __init__(self, worker: Worker, outputs: Path, running: Callable[[], str | None]) -> None:
        """outputs: folder for the images, one folder a day in it. running: the name of a training that is active."""
        self._worker = worker
        self._outputs = outputs
        self._running = running
        self._requests: list[_Request] = []
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._number = 0

    # ---- asking

    def submit(self, config: GenerateConfig, *, wait: bool = False) -> int:
        """Draw a request; wait: only when no training is active. Returns its number."""
        config = self._into_today(config)
        drawing = Drawing(
            0, config.prompt.strip() or "no prompt", "queued", config.num_images, at_once=config.batch_size
        )
        return self._add(_Request(drawing, lambda: self._worker.submit(config)), wait)

    def submit_grid(self, grid: Grid, *, run: Path | None = None, wait: bool = False) -> int:
        """Draw all cells of a grid and its sheet; run: for the axis `checkpoint`. Returns its number."""
        config, axes = self._into_today(grid.config), [axis.spec for axis in grid.axes]
        title = "Grid: " + " x ".join(axis.title for axis in grid.axes)
        drawing = Drawing(0, title, "queued", len(grid.cells()), is_grid=True, at_once=config.batch_size)
        return self._add(_Request(drawing, lambda: self._worker.submit_grid(config, axes, run=run)), wait)

    def cancel(self, number: int) -> None:
        """Take a request back; what it has finished stays."""
        with self._lock:
            for request in self._requests:
                if request.drawing.id == number and not request.drawing.is_over:
                    request.is_cancelled = True
                    if request.worker_id is not None:
                        self._worker.cancel(request.worker_id)

    def draw_now(self, number: int) -> None:
        """Don't let a request wait for the training any longer."""
        with self._lock:
            for request in self._requests:
                if request.drawing.id == number and request.drawing.status == "waiting":
                    request.drawing = replace(request.drawing, status="queued")

    # ---- following

    def all(self) -> list[Drawing]:
        """The requests, oldest first."""
        with self._lock:
            return [request.drawing for request in self._requests]

    def get(self, number: int) -> Drawing:
        """One request. Raises RunError when it is not known (any more)."""
        for drawing in self.all():
            if drawing.id == number:
                return drawing
        raise RunError(f"there is no request {number}: it was over long ago, or made before the server started")

    def current(self) -> Drawing | None:
        """The one that is generated now, else the newest, None before the first."""
        drawings = self.all()
        return next((one for one in drawings if not one.is_over), drawings[-1] if drawings else None)

    @property
    def is_busy(self) -> bool:
        """Whether any request is not over."""
        return any(not drawing.is_over for drawing in self.all())

    def yield_to_training(self) -> bool:
        """Give the worker's memory back when a training has begun and nothing is under way; True when it was done."""
        if self._worker.memory() is None or self._running() is None:
            return False
        with self._lock:
            is_idle = all(one.drawing.is_over or one.drawing.status == "waiting" for one in self._requests)
        return is_idle and self._worker.release()

    def memory(self) -> WorkerMemory | None:
        """What the worker holds, None when there is none."""
        return self._worker.memory()

    def close(self) -> None:
        """End the worker; requests that are not over are cancelled."""
        self._worker.close()

    # ---- at work

    def _into_today(self, config: GenerateConfig) -> GenerateConfig:
        folder = self._outputs / time.strftime("%Y-%m-%d")
        return config.model_copy(update={"files": config.files.model_copy(update={"folder": folder})})

    def _add(self, request: _Request, wait: bool) -> int:
        with self._lock:
            self._number += 1
            status: Status = "waiting" if wait and self._running() else "queued"
            request.drawing = replace(request.drawing, id=self._number, status=status)
            over = [old for old in self._requests if old.drawing.is_over]
            for old in over[: max(0, len(over) - _KEPT)]:
                self._requests.remove(old)
            self._requests.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="drawings", daemon=True)
                self._thread.start()
            return self._number

    def _follow(self) -> None:
        """Hand requests to the worker and take note of what it does until every request is over."""
        looked, training = 0.0, None
        while True:
            if time.monotonic() - looked > _TRAINING_LOOK_SECONDS:
                looked, training = time.monotonic(), self._running()
            with self._lock:
                open_requests = [request for request in self._requests if not request.drawing.is_over]
                if not open_requests:
                    self._thread = None
                    return
                for request in open_requests:
                    try:
                        self._attend(request, training)
                    except SdloraError as error:
                        request.drawing = replace(request.drawing, status="failed", error=str(error))
            time.sleep(_LOOK_SECONDS)

    def _attend(self, request: _Request, training: str | None) -> None:
        """One look at one request: ask for it if it is its time, see how far it is."""
        drawing = request.drawing
        if request.worker_id is None:
            if request.is_cancelled:
                request.drawing = replace(drawing, status="cancelled")
                return
            if drawing.status == "waiting" and training is not None:
                return
            request.worker_id = request.ask()
        now = self._worker.poll(request.worker_id)
        started = drawing.started or (0.0 if now.status == "queued" else time.time())
        request.drawing = replace(
            drawing,
            status=now.status,
            num_images=now.num_images,
            progress=now,
            error=now.error,
            started=started,
            seconds=time.time() - started if started else 0.0,
        )
