"""Reading logs that another process is writing: from an offset on, backwards from the end, and their last words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from sdlora.constants import MIB
from sdlora.events import Event, parse_event

_BLOCK_BYTES = 32 * 1024
READ_BYTES = 16 * MIB
"""Most that one call of read_events takes in, unless told otherwise."""
_TAIL_BYTES = 256 * 1024
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_LAST_WORDS = re.compile(
    r"^(error: |[\w.]*(Error|Exception|Interrupt|Exit)\b|Fatal Python error|Segmentation fault|Killed|Aborted"
    r"|failed at step|terminate called)"
)


def read_events(path: Path, offset: int = 0, at_most: int = READ_BYTES) -> tuple[list[Event], int]:
    """The events from a byte offset on, of `at_most` bytes, and the offset to go on from.

    A last line that is half written is left for then.

    Lines that are no events (cut off by a crash, or of a newer version) are passed over.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(at_most)
    except OSError:
        return [], offset
    # The last line may be half written: it is left for the next call.
    whole, newline, _ = data.rpartition(b"\n")
    events = [event for line in whole.split(b"\n") if (event := event_of(line)) is not None]
    return events, offset + len(whole) + len(newline)


def iterate_events(path: Path, offset: int = 0) -> Iterator[Event]:
    """The events from a byte offset on, read block by block, so that the first ones cost little."""
    for line in _lines_from(path, offset):
        event = event_of(line)
        if event is not None:
            yield event


def iterate_backwards(path: Path, down_to: int = 0) -> Iterator[Event]:
    """The events from the newest back to a byte offset, read block by block."""
    for line in _lines_backwards(path, down_to):
        event = event_of(line)
        if event is not None:
            yield event


def event_of(line: bytes) -> Event | None:
    """The event in one line, None if it is none."""
    if not line.startswith(b"{"):
        return None
    try:
        return parse_event(line)
    except ValidationError:
        return None


def text_tail(path: Path, lines: int = 200, *, offset: int = 0) -> str:
    """The last lines of a text log from a byte offset on, as a terminal would show them.

    Progress bars write over their line after a carriage return: only what they wrote last is kept. Colours are left
    out.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(offset, size - _TAIL_BYTES)
            file.seek(start)
            data = file.read()
    except OSError:
        return ""
    text = data.decode("utf-8", errors="replace")
    # The block began somewhere within a line.
    if start > offset:
        text = text.partition("\n")[2]
    shown = [_TERMINAL_CODE.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
    if shown and not shown[-1]:
        shown.pop()
    return "\n".join(shown[-lines:])


def last_words(path: Path, *, offset: int = 0) -> str | None:
    """The last line of a text log that tells of an error, with the lines indented under it; None if no line does."""
    lines = text_tail(path, 400, offset=offset).splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if _LAST_WORDS.match(lines[index]):
            words = [lines[index]]
            for line in lines[index + 1 :]:
                if not line.startswith("  "):
                    break
                words.append(line)
            return "\n".join(words)
    return None


def _lines_from(path: Path, offset: int) -> Iterator[bytes]:
    rest = b""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while block := file.read(_BLOCK_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
    except OSError:
        return


def _lines_backwards(path: Path, down_to: int) -> Iterator[bytes]:
    rest = b""
    try:
        with path.open("rb") as file:
            position = file.seek(0, 2)
            while position > down_to:
                size = min(_BLOCK_BYTES, position - down_to)
                position -= size
                file.seek(position)
                rest, *lines = (file.read(size) + rest).split(b"\n")
                yield from reversed(lines)
            yield rest
    except OSError:
        return
