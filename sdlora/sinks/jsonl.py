"""Appends every event to events.jsonl, one JSON object a line."""

from __future__ import annotations

from pathlib import Path

from sdlora.events import Event


class JsonlSink:
    """Writes events to a file that can be followed while the run goes on."""

    fatal = True
    """A run whose record can't be written must not go on as if it were."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def emit(self, event: Event) -> None:
        """Append one event; the line is handed to the system at once."""
        self._file.write(event.model_dump_json() + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
