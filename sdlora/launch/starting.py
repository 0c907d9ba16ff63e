"""Starting runs on a button's press: at most one for each, whatever a double click or a slow answer does."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from sdlora.config.train import TrainConfig
from sdlora.errors import RunError
from sdlora.launch import queue, queue_file
from sdlora.launch.runs import RunHandle, prepare

SAME_PRESS_SECONDS = 4.0
"""The same configuration asked for again within this time is taken for the second half of a double click."""


class Starter:
    """Makes runs of configurations. Safe from several threads."""

    def __init__(self, runs_folder: Path) -> None:
        self._runs_folder = runs_folder
        self._lock = threading.Lock()
        self._newest: tuple[TrainConfig, float, RunHandle] | None = None

    def start(self, config: TrainConfig) -> RunHandle:
        """Make a run and start it now. Raises RunError when another one runs or waits on the same accelerator."""
        # The queue's lock: another server with the same runs must not start one between the look and the start.
        with self._lock, queue_file.lock(self._runs_folder):
            repeated = self._same_press(config)
            if repeated is not None:
                return repeated
            found = queue.read(self._runs_folder)
            if found.running:
                raise RunError(f"{found.running[0].name} is training: add this run to the queue instead.")
            if found.waiting:
                raise RunError(f"{found.waiting[0].name} waits in the queue: add this run to the queue instead.")
            handle = prepare(config, self._runs_folder)
            handle.resume()
            return self._remember(config, handle)

    def enqueue(self, config: TrainConfig) -> RunHandle:
        """Make a run and put it last into the queue; it starts when its turn comes."""
        with self._lock:
            repeated = self._same_press(config)
            return repeated or self._remember(config, queue.submit(config, self._runs_folder))

    def _same_press(self, config: TrainConfig) -> RunHandle | None:
        if self._newest is None:
            return None
        before, pressed_at, handle = self._newest
        is_same = before == config and time.monotonic() - pressed_at < SAME_PRESS_SECONDS
        return handle if is_same and handle.folder.exists() else None

    def _remember(self, config: TrainConfig, handle: RunHandle) -> RunHandle:
        self._newest = (config, time.monotonic(), handle)
        return handle
