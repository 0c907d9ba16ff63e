"""Tells others how a run ended: a command on this machine, an address on the network."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sdlora.events import Event, RunFailed, RunFinished, RunStarted
from sdlora.processes import without_launcher
from sdlora.words import duration_in_words

_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class _Ending:
    outcome: str
    """completed, stopped or failed."""
    name: str
    run: str
    adapter: str
    """Path of the file; empty for a failed run."""
    step: int
    seconds: float
    message: str

    @property
    def sentence(self) -> str:
        reason = f": {self.message}" if self.message else f" after {duration_in_words(self.seconds)}"
        return f"{self.name} {self.outcome} at step {self.step}{reason}"


class AtEndSink:
    """Runs a command and tells an address when the run has ended. What goes wrong with either is told, no more."""

    def __init__(self, run: Path, name: str, command: str | None, webhook: str | None) -> None:
        self._run, self._name = run, name
        self._command, self._webhook = command, webhook
        self.tell: Callable[[str], None] = lambda message: None
        """Takes a sentence about what went wrong."""

    def emit(self, event: Event) -> None:
        """Act on the run's last event."""
        if isinstance(event, RunStarted):
            self._name = event.name
        elif isinstance(event, RunFinished):
            adapter = event.adapter_path or ""
            self._end(_Ending(event.reason, self._name, str(self._run), adapter, event.step, event.seconds, ""))
        elif isinstance(event, RunFailed):
            self._end(_Ending("failed", self._name, str(self._run), "", event.step, 0.0, event.message))

    def close(self) -> None:
        """There is nothing to close."""

    def _end(self, ending: _Ending) -> None:
        # The address first: a command may switch the machine off.
        if self._webhook is not None:
            self._post(self._webhook, ending)
        if self._command is not None:
            self._start(self._command, ending)

    def _post(self, address: str, ending: _Ending) -> None:
        # `text` is what Slack and Mattermost show, `content` what Discord does.
        body = {**asdict(ending), "text": ending.sentence, "content": ending.sentence}
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS):
                pass
        except (urllib.error.URLError, OSError, ValueError) as error:
            # The host alone: its user, path and query are often what lets one in.
            host = urllib.parse.urlsplit(address).hostname or "the address"
            self.tell(f"outputs.webhook: {host} can't be told: {error}")

    def _start(self, command: str, ending: _Ending) -> None:
        told = {"OUTCOME": ending.outcome, "RUN": ending.run, "ADAPTER": ending.adapter, "STEP": str(ending.step)}
        told["MESSAGE"] = ending.message
        environment = {**without_launcher(os.environ), **{f"SDLORA_{name}": value for name, value in told.items()}}
        program = shlex.split(command)[0]  # what follows may hold passwords, and logs are shown to others
        try:
            ended = subprocess.run(shlex.split(command), env=environment, stdin=subprocess.DEVNULL, check=False)
        except OSError as error:
            self.tell(f"outputs.on_finish: '{program}' can't be run: {error.strerror or error}")
            return
        if ended.returncode:
            self.tell(f"outputs.on_finish: '{program}' ended with code {ended.returncode}")
