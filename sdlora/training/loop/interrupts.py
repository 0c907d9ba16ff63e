"""Ctrl-C and termination signals: a wish that training fulfils between two steps, or between two images it encodes."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StoppedEarly(KeyboardInterrupt):
    """Training was stopped while it was prepared, so there is nothing to save.

    is_asked: whether somebody asked for it (`sdlora stop`, the page); else it was a signal.
    """

    def __init__(self, *, is_asked: bool) -> None:
        super().__init__("stopped before the first step")
        self.is_asked = is_asked


class Interrupts:
    """Inside the `with` block the first signal sets `seen`, for the run to save; one more Ctrl-C interrupts it.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """

    # A closed terminal or a lost connection sends SIGHUP, which Windows doesn't have.
    _SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

    def __init__(self) -> None:
        self.seen = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = True
