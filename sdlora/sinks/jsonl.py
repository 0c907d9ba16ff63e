"""Appends every event to events.jsonl, one JSON object a line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sdlora.events import Event
from sdlora.text_files import model_as_json

EVENTS_VARIABLE = "SDLORA_EVENTS"
"""Environment variable that names a file for the events of a command."""


class JsonlSink:
    """Writes events to a file that can be followed while the run goes on."""

    fatal = True
    """A run whose record can't be written must not go on as if it were."""

    def __init__(self, path: Path) -> None:
        """Open the file. A last line that a crash cut off is ended, so that it doesn't spoil the next one."""
        self._path = path
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def emit(self, event: Event) -> None:
        """Append one event; the line is handed to the system at once."""
        # A folder that is exchanged while the run trains, as when a disk went and came back empty, gets a log again.
        if not self._path.exists() and self._path.parent.is_dir():
            self.close()
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        try:
            self._file.write(model_as_json(event) + "\n")
        except OSError as error:
            error.filename = str(self._path)
            raise

    def close(self) -> None:
        """Close the file; what was written is with the system already, or was told to have failed."""
        with suppress(OSError):
            self._file.close()
