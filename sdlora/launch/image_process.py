"""The process that generates images, seen from who asks: started, talked to in lines, ended (see `image_worker`)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from pydantic import ValidationError

from sdlora.launch.detached import CREATION_FLAGS, OWN_SESSION
from sdlora.launch.image_messages import Answer, Request, parse_answer
from sdlora.runs.event_log import last_words, text_tail
from sdlora.text_files import model_as_json

WORKER = (sys.executable, "-m", "sdlora.launch.image_worker")
END_SECONDS = 5.0
"""Time that the process is given to end before it is killed."""


class WorkerProcess:
    """One process from its start to its end. `on_answer` and `on_end` are called from a thread of its own."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        on_answer: Callable[[Answer], None],
        on_end: Callable[[WorkerProcess, str], None],
    ) -> None:
        """log: takes what the process and its libraries write. on_end: gets the process, and how it ended in words."""
        self._log = log
        self._on_answer, self._on_end = on_answer, on_end
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
                start_new_session=OWN_SESSION,
                creationflags=CREATION_FLAGS,
            )
        threading.Thread(target=self._listen, name="image worker's answers", daemon=True).start()

    @property
    def process_id(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, request: Request) -> None:
        """Hand over a request, or take one back."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(model_as_json(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it is gone: the thread that listens to it finds out too, and tells
            return

    def memory_bytes(self) -> int | None:
        """Main memory that it holds, None when it is gone."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return None

    def end(self) -> None:
        """Have it end, by force if it takes long."""
        # The worker ends when its input does, and tidies up; the signal below is for one that hangs.
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                try:
                    answer = parse_answer(line)
                except ValidationError:  # cut off when the process was killed
                    continue
                self._on_answer(answer)
        code = self._process.wait()
        words = last_words(self._log) or text_tail(self._log, 1)
        self._on_end(self, f"the process that generates died ({_exit_in_words(code)}). {words}".rstrip())


def _exit_in_words(code: int) -> str:
    if code == -9:
        return "killed, often because the system ran out of memory"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
