"""What the Generate tab shows of requests: how far they are, and their results."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdlora.data.thumbnails import thumbnail
from sdlora.launch.images import ImageRequest
from sdlora.processes import start_mark
from sdlora.words import count
from webui.pieces import Tile, empty, notes
from webui.templating import macros

_HTML = macros("generate.html")
RESULT_EDGE_PX = 512
_SHOWN_TITLE = 70
_STATUS_WORDS = {
    "waiting": "waits for the training",
    "queued": "waits for its turn",
    "loading": "loading the model",
    "generating": "generating",
    "finished": "finished",
    "cancelled": "cancelled",
    "failed": "failed",
}

tokens = _HTML.tokens
"""Tokens of a prompt, and the room for them."""


def progress(request: ImageRequest | None, waiting: int = 0) -> str:
    """How far a request is: a sentence for screen readers too, a bar, the unfinished picture."""
    if request is None:
        return str(empty("Write a prompt and press Generate. What was generated before is in History."))
    return str(_HTML.progress(request, _sentence(request, waiting), _preview(request.preview)))


def requests(all_of_them: Sequence[ImageRequest]) -> str:
    """The requests that are not over, in their order; nothing for fewer than two."""
    rows = [
        (_short(one.title), f"{_STATUS_WORDS[one.status]}, {len(one.images)} of {one.num_images}")
        for one in all_of_them
        if not one.is_over
    ]
    return str(_HTML.requests(rows))


def unfinished(all_of_them: Sequence[ImageRequest]) -> dict[str, Any] | None:
    """What there is to tell of the requests that are not over, should the server end now; None for nothing."""
    told = [
        f"{_short(one.title)}: {len(one.images)} of {one.num_images} were generated"
        for one in all_of_them
        if not one.is_over
    ]
    return {"process": os.getpid(), "began": start_mark(os.getpid()), "told": told} if told else None


def is_anothers(kept: object) -> bool:
    """Whether what is kept was told by another server, and that still runs."""
    match kept:
        case {"process": int(process), "began": str(began)}:
            return process != os.getpid() and start_mark(process) == began
    return False


def lost(kept: object) -> str:
    """What a server that begins tells of what `unfinished` told the one before, as it was kept; empty for nothing.

    Nothing of one that still runs, with a studio that two servers share.
    """
    told = [] if is_anothers(kept) or not isinstance(kept, dict) else kept.get("told")
    told = [str(one) for one in told] if isinstance(told, list) else []
    return notes(told, "The page's server ended before these were done: ask for them again") if told else ""


def _sentence(request: ImageRequest, waiting: int) -> str:
    done, total = len(request.images), request.num_images
    if request.is_ending and not request.is_over:
        step = "the model is loaded" if request.status == "loading" else "its step is done"
        words = f"Cancelling: it ends once {step}"
    elif request.status == "generating" and request.images_at_work > 1:
        words = f"Generating images {done + 1} to {done + request.images_at_work} of {total}"
    elif request.status == "generating":
        words = f"Generating image {done + 1} of {total}" if done < total else "Finishing"
    elif request.is_over and done:
        words = f"{count(done, 'image')} in {request.seconds:.1f} s"
        if request.status != "finished":
            words += f", then {_STATUS_WORDS[request.status]} ({total} were asked for)"
    else:
        words = _STATUS_WORDS[request.status].capitalize()
    return words + (f"; {count(waiting, 'more request')} after it" if waiting else "")


def _preview(path: Path | None) -> str:
    """The unfinished picture for the page itself: it changes every second and is worth no request of its own."""
    try:
        return "" if path is None else base64.b64encode(path.read_bytes()).decode()
    except OSError:  # it was finished a moment ago
        return ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_TITLE else f"{line[: _SHOWN_TITLE - 3]}..."


# ---- results


def tiles(request: ImageRequest, thumbnails: Path) -> list[Tile]:
    """The files of a request with what stands below each, a grid's sheet first."""
    # A grid's cells differ in its axes, where the seed is mostly the same.
    labels = (
        [", ".join(each) for each in request.labels] if request.is_grid else [f"seed {each}" for each in request.seeds]
    )
    sheet = [(request.sheet, "the whole grid")] if request.sheet else []
    return [
        Tile(str(path), thumbnail(path, thumbnails, RESULT_EDGE_PX), label)
        for path, label in [*sheet, *zip(request.images, labels, strict=False)]
    ]
