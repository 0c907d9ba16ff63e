"""Drawing images in a resident worker process, which keeps the base model loaded between requests."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
from pydantic import ValidationError

from sdlora.config.generate import GenerateConfig
from sdlora.errors import RunError
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import MOST_CELLS, Grid
from sdlora.launch.detached import CREATION_FLAGS, OWN_SESSION
from sdlora.launch.image_messages import Answer, Cancel, Ended, Generate, Loading, Request, Saved, Stepped, parse_answer
from sdlora.runs.event_log import last_words, text_tail

ImageStatus = Literal["queued", "loading", "drawing", "finished", "cancelled", "failed"]

WORKER = (sys.executable, "-m", "sdlora.launch.image_worker")
IDLE_SECONDS = 600.0
"""Time without a request after which the worker ends, so that its memory is free."""
END_SECONDS = 5.0
"""Time that the worker is given to end before it is killed."""
_REMEMBERED = 200
"""Requests of which the progress is kept."""
_GIB = 2**30


@dataclass(frozen=True)
class ImageProgress:
    """How far a request has come."""

    status: ImageStatus
    num_images: int
    """Images asked for."""
    step: int = 0
    total_steps: int = 0
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
    waits_for: int = 0
    """queued: requests that come before this one."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("finished", "cancelled", "failed")


@dataclass(frozen=True)
class WorkerMemory:
    """Memory held by the worker, in GiB."""

    process_gib: float
    accelerator_gib: float | None
    """On the accelerator as of the newest request; None without one."""


class ImageWorker:
    """One worker process, started with the first request and again when it is needed. Safe to use from many threads.

    Requests are answered one after the other. The worker ends with the process that made this object, and after
    `idle_seconds` without a request. If it dies, the request it was at fails with the reason and the next one starts
    a new worker.
    """

    def __init__(self, folder: Path, *, idle_seconds: float = IDLE_SECONDS, command: Sequence[str] = WORKER) -> None:
        """`folder` takes the log and the previews; it is made when needed."""
        self._folder = folder
        self._idle_seconds = idle_seconds
        self._command = list(command)
        self._lock = threading.RLock()
        self._progress: dict[str, ImageProgress] = {}
        self._requests: dict[str, Generate] = {}
        self._waiting: deque[str] = deque()
        self._current: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._idle: threading.Timer | None = None
        self._accelerator_gib: float | None = None
        self._is_closed = False

    def submit(self, config: GenerateConfig) -> str:
        """Ask for images; returns the request's id at once."""
        request_id = uuid.uuid4().hex[:12]
        self._add(Generate(id=request_id, config=config, preview_path=self._preview(request_id)), config.num_images)
        return request_id

    def submit_grid(
        self, config: GenerateConfig, axes: Sequence[str], *, run: Path | None = None, most_cells: int = MOST_CELLS
    ) -> str:
        """Ask for a grid (see `grid_axes.parse_axes`; `compare` is none, each and all of the adapters).

        It goes into a new folder in config.files.folder. Raises ConfigError when the axes don't fit the request.
        """
        grid = Grid(config, parse_axes(axes, config, run), most_cells=most_cells)
        request_id = uuid.uuid4().hex[:12]
        generate = Generate(
            id=request_id,
            config=grid.config,
            preview_path=self._preview(request_id),
            axes=list(axes),
            run=None if run is None else str(run),
            most_cells=most_cells,
        )
        self._add(generate, len(grid.cells()))
        return request_id

    def poll(self, request_id: str) -> ImageProgress:
        """How far a request has come. Raises RunError for an id that is unknown, or was forgotten long ago."""
        with self._lock:
            if request_id not in self._progress:
                raise RunError(f"there is no request '{request_id}': it was made before the page's server started.")
            progress = self._progress[request_id]
            if progress.status == "queued":
                ahead = list(self._waiting).index(request_id) + (self._current is not None)
                return replace(progress, waits_for=ahead)
            return progress

    def cancel(self, request_id: str) -> None:
        """Take a request back; what it has finished stays. Does nothing to one that is over."""
        with self._lock:
            if request_id in self._waiting:
                self._waiting.remove(request_id)
                self._change(request_id, status="cancelled")
            elif request_id == self._current:
                self._send(Cancel(id=request_id))

    def memory(self) -> WorkerMemory | None:
        """What the worker holds, None when there is none."""
        with self._lock:
            if self._process is None:
                return None
            try:
                held = psutil.Process(self._process.pid).memory_info().rss
            except psutil.Error:
                return None
            return WorkerMemory(held / _GIB, self._accelerator_gib)

    def release(self, *, cancel: bool = False) -> bool:
        """End the worker, so that its memory is free for a training; returns whether it is gone.

        While it generates or requests wait nothing happens, unless `cancel` takes them all back.
        """
        with self._lock:
            if (self._current or self._waiting) and not cancel:
                return False
            while self._waiting:
                self._change(self._waiting.popleft(), status="cancelled")
            if self._current is not None:
                self._change(self._current, status="cancelled")
                self._current = None
            self._end_process()
            return True

    def close(self) -> None:
        """End the worker for good; requests that are not over are cancelled."""
        with self._lock:
            self._is_closed = True
            self.release(cancel=True)

    def log_tail(self, lines: int = 200) -> str:
        """The last lines of what the worker and its libraries wrote."""
        return text_tail(self._log, lines)

    @property
    def _log(self) -> Path:
        return self._folder / "log.txt"

    def _preview(self, request_id: str) -> str:
        return str(self._folder / f"preview-{request_id}.jpg")

    def _add(self, request: Generate, num_images: int) -> None:
        with self._lock:
            if self._is_closed:
                raise RunError("the image worker is closed: no more images are generated.")
            self._requests[request.id] = request
            self._progress[request.id] = ImageProgress("queued", num_images)
            self._waiting.append(request.id)
            self._forget_old()
            self._send_next()

    def _send_next(self) -> None:
        """Hand the worker its next request, if it is free and there is one."""
        if self._current is not None or not self._waiting:
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._process is None:
            self._process = self._start()
        self._current = self._waiting.popleft()
        self._change(self._current, status="loading")
        self._send(self._requests[self._current])

    def _start(self) -> subprocess.Popen[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
                start_new_session=OWN_SESSION,
                creationflags=CREATION_FLAGS,
            )
        threading.Thread(target=self._listen, args=(process,), name="image worker's answers", daemon=True).start()
        return process

    def _send(self, request: Request) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(request.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it is gone: the thread that listens to it finds out too, and tells
            return

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Take the answers of one worker process until it ends."""
        assert process.stdout is not None
        with process.stdout as answers:
            for line in answers:
                try:
                    answer = parse_answer(line)
                except ValidationError:  # cut off when the worker was killed
                    continue
                with self._lock:
                    if answer.id == self._current:
                        self._take(answer)
        code = process.wait()
        with self._lock:
            if self._process is process:
                self._lose(code)

    def _take(self, answer: Answer) -> None:
        progress = self._progress[answer.id]
        match answer:
            case Loading():
                self._change(answer.id, status="loading")
            case Stepped():
                made = progress.previews_made + answer.has_preview
                preview = Path(self._requests[answer.id].preview_path) if made else None
                self._change(
                    answer.id,
                    status="drawing",
                    step=answer.step,
                    total_steps=answer.total_steps,
                    preview=preview,
                    previews_made=made,
                )
            case Saved():
                self._change(
                    answer.id,
                    status="drawing",
                    images=(*progress.images, Path(answer.path)),
                    seeds=(*progress.seeds, answer.seed),
                    labels=(*progress.labels, tuple(answer.labels)),
                    warnings=tuple(dict.fromkeys((*progress.warnings, *answer.warnings))),
                )
            case Ended():
                self._accelerator_gib = answer.accelerator_gib
                self._finish(answer.outcome, answer.error, Path(answer.sheet) if answer.sheet else None)

    def _finish(self, outcome: ImageStatus, error: str | None, sheet: Path | None = None) -> None:
        """The current request is over: note how, and go on with the next one or wait for one."""
        assert self._current is not None
        self._change(self._current, status=outcome, error=error, sheet=sheet)
        self._current = None
        if not self._waiting:
            self._idle = threading.Timer(self._idle_seconds, self.release)
            self._idle.daemon = True
            self._idle.start()
        self._send_next()

    def _lose(self, code: int) -> None:
        """The worker died by itself."""
        self._forget_process()
        if self._current is not None:
            words = last_words(self._log) or text_tail(self._log, 1)
            self._finish("failed", f"the process that generates died ({_exit_in_words(code)}). {words}".rstrip())

    def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        self._forget_process()
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _forget_process(self) -> None:
        self._process, self._accelerator_gib = None, None
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _change(self, request_id: str, **values: object) -> None:
        progress = replace(self._progress[request_id], **values)  # type: ignore[arg-type]
        if progress.is_over:
            progress = replace(progress, preview=None)
            Path(self._requests[request_id].preview_path).unlink(missing_ok=True)
        self._progress[request_id] = progress

    def _forget_old(self) -> None:
        over = [request_id for request_id, progress in self._progress.items() if progress.is_over]
        for request_id in over[: max(0, len(self._progress) - _REMEMBERED)]:
            del self._progress[request_id], self._requests[request_id]


def _exit_in_words(code: int) -> str:
    if code == -9:
        return "killed, often because the system ran out of memory"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
