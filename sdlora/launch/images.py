"""Requests for images, generated in their order by a resident process that keeps the base model loaded between them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

from sdlora import atomic
from sdlora.config.generate import GenerateConfig
from sdlora.constants import GIB
from sdlora.errors import RunError
from sdlora.generation.grid.run import Grid
from sdlora.launch.image_messages import Answer, Cancel, Ended, Generate, Loading, Saved, Stepped
from sdlora.launch.image_process import WORKER, WorkerProcess
from sdlora.processes import ProcessRecord
from sdlora.runs.event_log import text_tail

ImageStatus = Literal["waiting", "queued", "loading", "generating", "finished", "cancelled", "failed"]
"""waiting: for a training to end. queued: for the requests before it."""

IDLE_SECONDS = 600.0
"""Time without a request after which the worker ends, so that its memory is free."""
TRAINING_SECONDS = 2.0
"""How often requests that wait for a training look whether it has ended."""
_REMEMBERED = 200
"""Requests of which the progress is kept."""


@dataclass(frozen=True)
class ImageRequest:
    """One request, and how far it has come."""

    id: int
    title: str
    status: ImageStatus
    num_images: int
    """Images asked for."""
    is_grid: bool = False
    batch_size: int = 1
    """Images that are generated together."""
    step: int = 0
    total_steps: int = 0
    is_ending: bool = False
    """Whether it was asked to end, which it does once the model is loaded or the current step done."""
    images: tuple[Path, ...] = ()
    """Finished images, in the order in which they were generated."""
    seeds: tuple[int, ...] = ()
    """Their seeds."""
    labels: tuple[tuple[str, ...], ...] = ()
    """Of a grid: each image's value along every axis."""
    sheet: Path | None = None
    """Of a grid: the contact sheet with all its images, when it is over."""
    preview: Path | None = None
    """A small JPEG of what is being generated, once there is one."""
    previews_made: int = 0
    """Counts up with each new preview, which overwrites the one before."""
    warnings: tuple[str, ...] = ()
    error: str | None = None
    """failed: what went wrong."""
    started_at: float = 0.0
    """Seconds since the epoch when the worker took it up."""
    ended_at: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: it is finished, cancelled or failed."""
        return self.status in ("finished", "cancelled", "failed")

    @property
    def seconds(self) -> float:
        """Time that it took, or has taken so far."""
        return (self.ended_at or time.time()) - self.started_at if self.started_at else 0.0

    @property
    def images_at_work(self) -> int:
        """How many images the current steps are for."""
        return min(self.batch_size, self.num_images - len(self.images))

    @property
    def share_done(self) -> float:
        """From 0 to 1, by steps of all images; images of a batch advance together."""
        if self.is_over:
            return 1.0
        step = self.step / self.total_steps if self.total_steps else 0.0
        return min(1.0, (len(self.images) + step * self.images_at_work) / (self.num_images or 1))


@dataclass(frozen=True)
class WorkerMemory:
    """Memory held by the worker, in GiB."""

    process_gib: float
    accelerator_gib: float | None
    """On the accelerator as of the newest request; None without one."""


class ImageQueue:
    """The requests, and one worker process: started with the first of them and again when it is needed.

    Requests are answered one after the other; every method returns at once, from any thread. The worker ends with the
    process that made this object, and after `idle_seconds` without a request. If it dies, the request it was at fails
    with the reason and the next one starts a new worker.
    """

    def __init__(
        self,
        folder: Path,
        *,
        training: Callable[[], str | None] = lambda: None,
        idle_seconds: float = IDLE_SECONDS,
        command: Sequence[str] = WORKER,
    ) -> None:
        """folder: takes the log and the previews, in a folder of this queue's own.

        training: the name of a training that runs on this machine now.
        """
        self._folder = _own_folder(folder)
        self._training = training
        self._idle_seconds = idle_seconds
        self._command = command
        # Reentrant: what a finished request sets off (the next one, the end of the worker) locks again.
        self._lock = threading.RLock()
        self._numbers = count(1)
        self._requests: dict[int, ImageRequest] = {}
        self._asked: dict[int, Generate] = {}
        self._queued: deque[int] = deque()
        self._current: int | None = None
        self._worker: WorkerProcess | None = None
        self._idle: threading.Timer | None = None
        self._watcher: threading.Timer | None = None
        self._accelerator_gib: float | None = None
        self._is_closed = False

    # ---- asking

    def submit(self, config: GenerateConfig, *, wait: bool = False) -> int:
        """Ask for images; returns the request's id. wait: only when no training runs."""
        title = config.prompt.strip() or "no prompt"
        request = ImageRequest(next(self._numbers), title, "queued", config.num_images, batch_size=config.batch_size)
        return self._add(request, self._message(request, config), wait)

    def submit_grid(self, grid: Grid, *, run: Path | None = None, wait: bool = False) -> int:
        """Ask for all cells of a grid and its sheet, in a new folder in config.files.folder; run: for `checkpoint`."""
        title = "Grid: " + " x ".join(axis.title for axis in grid.axes)
        request = ImageRequest(
            next(self._numbers), title, "queued", len(grid.cells()), is_grid=True, batch_size=grid.config.batch_size
        )
        message = self._message(request, grid.config).model_copy(
            update={
                "axes": [axis.spec for axis in grid.axes],
                "run": None if run is None else str(run),
                "most_cells": len(grid.cells()),
            }
        )
        return self._add(request, message, wait)

    def cancel(self, number: int) -> None:
        """Take a request back; what it has finished stays. Does nothing to one that is over."""
        with self._lock:
            request = self._requests.get(number)
            if request is None or request.is_over:
                return
            if number == self._current:
                # Only asked: the worker ends between two steps, and its answer tells when; what is finished by then
                # stays.
                assert self._worker is not None
                self._worker.send(Cancel(id=str(number)))
                self._change(number, is_ending=True)
                return
            if number in self._queued:
                self._queued.remove(number)
            self._change(number, status="cancelled")

    # ---- following

    def requests(self) -> list[ImageRequest]:
        """The requests, oldest first."""
        with self._lock:
            return list(self._requests.values())

    def get(self, number: int) -> ImageRequest:
        """One request. Raises RunError for an id that is unknown, or was forgotten long ago."""
        with self._lock:
            if number not in self._requests:
                raise RunError(f"there is no request {number}: it was over long ago, or made before the server started")
            return self._requests[number]

    def current(self) -> ImageRequest | None:
        """The first that is not over, else the newest, None before the first."""
        requests = self.requests()
        return next((one for one in requests if not one.is_over), requests[-1] if requests else None)

    @property
    def is_busy(self) -> bool:
        """Whether any request is not over."""
        return any(not request.is_over for request in self.requests())

    def log_tail(self, lines: int = 200) -> str:
        """The last lines of what the worker and its libraries wrote."""
        return text_tail(self._log, lines)

    # ---- memory

    def memory(self) -> WorkerMemory | None:
        """What the worker holds, None when there is none."""
        with self._lock:
            held = None if self._worker is None else self._worker.memory_bytes()
            return None if held is None else WorkerMemory(held / GIB, self._accelerator_gib)

    def release(self, *, cancel: bool = False) -> bool:
        """End the worker, so that its memory is free; returns whether it is gone.

        While it generates or requests are queued nothing happens, unless `cancel` takes all requests back.
        """
        with self._lock:
            if (self._current is not None or self._queued) and not cancel:
                return False
            if cancel:
                self._queued.clear()
                self._current = None
                for number, request in self._requests.items():
                    if not request.is_over:
                        self._change(number, status="cancelled")
            self._end_worker()
            return True

    def yield_to_training(self) -> bool:
        """Give the worker's memory back when a training has begun and nothing is under way; True when it was done."""
        with self._lock:
            return self._worker is not None and self._training() is not None and self.release()

    def close(self) -> None:
        """End the worker for good; requests that are not over are cancelled."""
        with self._lock:
            self._is_closed = True
            if self._watcher is not None:
                self._watcher.cancel()
            self.release(cancel=True)

    # ---- at work

    @property
    def _log(self) -> Path:
        return self._folder / "log.txt"

    def _message(self, request: ImageRequest, config: GenerateConfig) -> Generate:
        preview = self._folder / f"preview-{request.id}.jpg"
        return Generate(id=str(request.id), config=config, preview_path=str(preview))

    def _add(self, request: ImageRequest, message: Generate, wait: bool) -> int:
        # Before the lock is taken: it looks at the disk.
        waits = wait and self._training() is not None
        with self._lock:
            if self._is_closed:
                raise RunError("the image worker is closed: no more images are generated.")
            self._asked[request.id] = message
            self._requests[request.id] = replace(request, status="waiting") if waits else request
            if waits:
                self._watch_training()
            else:
                self._queued.append(request.id)
            self._forget_old()
            self._send_next()
        return request.id

    def _watch_training(self) -> None:
        """Look again in a moment whether what trains has ended."""
        if self._watcher is None:
            self._watcher = threading.Timer(TRAINING_SECONDS, self._let_in)
            self._watcher.daemon = True
            self._watcher.start()

    def _let_in(self) -> None:
        """Queue the requests that waited for a training, if none runs any more."""
        is_training = self._training() is not None
        with self._lock:
            self._watcher = None
            waiting = [number for number, request in self._requests.items() if request.status == "waiting"]
            if waiting and is_training:
                self._watch_training()
                return
            for number in waiting:
                self._change(number, status="queued")
            self._queued.extend(waiting)
            self._send_next()

    def _send_next(self) -> None:
        """Hand the worker its next request, if it is free and there is one."""
        if self._current is not None or not self._queued:
            return
        self._stop_idling()
        if self._worker is None:
            self._worker = WorkerProcess(self._command, self._log, self._hear, self._lose)
        self._current = self._queued.popleft()
        self._change(self._current, status="loading", started_at=time.time())
        self._worker.send(self._asked[self._current])

    def _hear(self, answer: Answer) -> None:
        """Take an answer of the worker; one to a request that is over by now says nothing new."""
        with self._lock:
            if self._current is not None and answer.id == str(self._current):
                self._take(self._current, answer)

    def _take(self, number: int, answer: Answer) -> None:
        request = self._requests[number]
        match answer:
            case Loading():
                self._change(number, status="loading")
            case Stepped():
                made = request.previews_made + answer.has_preview
                self._change(
                    number,
                    status="generating",
                    step=answer.step,
                    total_steps=answer.total_steps,
                    preview=Path(self._asked[number].preview_path) if made else None,
                    previews_made=made,
                )
            case Saved():
                self._change(
                    number,
                    status="generating",
                    images=(*request.images, Path(answer.path)),
                    seeds=(*request.seeds, answer.seed),
                    labels=(*request.labels, tuple(answer.labels)),
                    warnings=tuple(dict.fromkeys((*request.warnings, *answer.warnings))),
                )
            case Ended():
                self._accelerator_gib = answer.accelerator_gib
                self._finish(answer.outcome, answer.error, Path(answer.sheet) if answer.sheet else None)

    def _finish(self, outcome: ImageStatus, error: str | None, sheet: Path | None = None) -> None:
        """The current request is over: note how, and go on with the next one or wait for one."""
        assert self._current is not None
        self._change(self._current, status=outcome, error=error, sheet=sheet)
        self._current = None
        if not self._queued:
            self._idle = threading.Timer(self._idle_seconds, self.release)
            self._idle.daemon = True
            self._idle.start()
        self._send_next()

    def _lose(self, worker: WorkerProcess, words: str) -> None:
        """The worker has ended; unless it was told to, the request that it was at has failed."""
        with self._lock:
            if self._worker is not worker:
                return
            at_work = [] if self._current is None else [self._asked[self._current].config.files.folder]
        # Without the lock, since it looks at every file there: what was half written when it was killed.
        with suppress(OSError):
            for folder in (self._folder, *at_work):
                atomic.sweep(folder)
        with self._lock:
            if self._worker is not worker:
                return
            self._forget_worker()
            if self._current is not None:
                self._finish("failed", words)

    def _end_worker(self) -> None:
        worker = self._worker
        self._forget_worker()
        if worker is not None:
            worker.end()

    def _forget_worker(self) -> None:
        self._worker, self._accelerator_gib = None, None
        self._stop_idling()

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _change(self, number: int, **values: object) -> None:
        request = replace(self._requests[number], **values)  # type: ignore[arg-type]
        if request.is_over:
            request = replace(request, preview=None, ended_at=time.time())
            Path(self._asked[number].preview_path).unlink(missing_ok=True)
        self._requests[number] = request

    def _forget_old(self) -> None:
        over = [number for number, request in self._requests.items() if request.is_over]
        for number in over[: max(0, len(self._requests) - _REMEMBERED)]:
            del self._requests[number], self._asked[number]


def _own_folder(parent: Path) -> Path:
    """A new folder that no other server writes into; those of servers that are gone are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    for record in parent.glob("*/server.json"):
        server = ProcessRecord.read(record)
        # Whether one on another machine still runs can't be told from here: it would have to touch its record.
        if server is not None and server.is_here() and not server.is_alive(record):
            shutil.rmtree(record.parent, ignore_errors=True)
    folder = atomic.create_folder(parent / str(os.getpid()))
    ProcessRecord.of(os.getpid()).write(folder / "server.json")
    return folder
