"""What Mix and Generate show as HTML: progress, requests, remarks, an adapter's card. Text in, text out."""

from __future__ import annotations

import base64
import html
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from sdlora.launch.jobs import JobState
from sdlora.library.scan import LibraryEntry
from webui.drawing.requests import Drawing
from webui.views.problems import panel

_SHOWN_TITLE = 70
_STATUS_WORDS = {
    "waiting": "waits for the training",
    "queued": "waits for its turn",
    "loading": "loading the model",
    "drawing": "drawing",
    "finished": "finished",
    "cancelled": "cancelled",
    "failed": "failed",
}


def progress(drawing: Drawing | None, waiting: int = 0) -> str:
    """How far a request is: a sentence for screen readers too, a bar, the unfinished picture."""
    if drawing is None:
        return empty("Nothing generated yet. Write a prompt and press Generate.")
    parts = [f'<p role="status" class="progress-words">{html.escape(_sentence(drawing, waiting))}</p>']
    if not drawing.is_over:
        percent = round(100 * drawing.share_done)
        parts.append(
            f'<div class="progress-bar" role="progressbar" aria-label="Drawing" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
        )
        now = drawing.progress
        if now.total_steps:
            parts.append(f'<p class="progress-step">step {now.step} of {now.total_steps}</p>')
        parts.append(_preview(now.preview))
    parts += [f'<p class="note">{html.escape(warning)}</p>' for warning in drawing.progress.warnings]
    if drawing.error:
        parts.append(panel([drawing.error]))
    return "".join(parts)


def _sentence(drawing: Drawing, waiting: int) -> str:
    done, total = len(drawing.images), drawing.num_images
    if drawing.status == "drawing" and drawing.drawn_now > 1:
        words = f"Drawing images {done + 1} to {done + drawing.drawn_now} of {total}"
    elif drawing.status == "drawing" and done < total:
        words = f"Drawing image {done + 1} of {total}"
    elif drawing.status == "drawing":
        words = "Finishing"
    elif drawing.is_over and done:
        words = f"{_plural(done, 'image')} in {drawing.seconds:.1f} s" + (
            "" if drawing.status == "finished" else f", then {_STATUS_WORDS[drawing.status]} ({total} were asked for)"
        )
    else:
        words = _STATUS_WORDS[drawing.status].capitalize()
    return words + (f"; {_plural(waiting, 'more request')} after it" if waiting else "")


def requests(drawings: Sequence[Drawing]) -> str:
    """The requests that are not over, in their order."""
    open_ones = [drawing for drawing in drawings if not drawing.is_over]
    if len(open_ones) < 2:
        return ""
    items = [
        f"<li><span>{html.escape(_short(drawing.title))}</span> "
        f"<em>{_STATUS_WORDS[drawing.status]}, {len(drawing.images)} of {drawing.num_images}</em></li>"
        for drawing in open_ones
    ]
    return f'<ol class="requests" aria-label="Requests">{"".join(items)}</ol>'


def picture(path: Path, words: str) -> str:
    """A picture that opens in full when it is pressed. words: what it is, for those who don't see it."""
    address = "gradio_api/file=" + urllib.parse.quote(str(path), safe="/")
    return f'<a class="shown" href="{address}" target="_blank"><img src="{address}" alt="{html.escape(words)}"></a>'


def notes(found: Sequence[str], title: str) -> str:
    """A quiet list of remarks; empty for none."""
    if not found:
        return ""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in found)
    return f'<div class="notes" role="status"><strong>{html.escape(title)}</strong><ul>{items}</ul></div>'


def card(entry: LibraryEntry | None) -> str:
    """What an adapter says about itself."""
    if entry is None:
        return ""
    about = entry.about
    facts = [
        summary(entry),
        f"{_plural(about.num_layers, 'layer')}, text encoder {'trained' if about.trains_text_encoder else 'untouched'}",
    ]
    if about.base_model:
        facts.append(f"trained on {about.base_model}")
    if about.preferred_weight is not None:
        facts.append(f"preferred weight {about.preferred_weight:g}")
    lines = [f"<h4>{html.escape(about.title or entry.name)}</h4>", f"<p>{html.escape('; '.join(facts))}</p>"]
    if about.trigger:
        lines.append(f"<p>Trigger words: {_chips([about.trigger])}</p>")
    if about.tags:
        lines.append(f"<p>Trained tags: {_chips(about.tags)}</p>")
    if about.notes:
        lines.append(f"<p>{html.escape(about.notes)}</p>")
    return f'<div class="card">{"".join(lines)}<p class="place">{html.escape(str(entry.path))}</p></div>'


def summary(entry: LibraryEntry) -> str:
    """Family, kind, rank and size in a line."""
    about = entry.about
    mebibytes = entry.file.size_bytes / 2**20
    size = f"{mebibytes:.1f} MiB" if mebibytes >= 0.1 else f"{entry.file.size_bytes / 1024:.1f} KiB"
    return f"{about.family or 'unknown family'} · {about.kind} rank {about.rank} · {size}"


def job(state: JobState | None, output: str, target: str) -> str:
    """How an export stands."""
    if state is None:
        return ""
    if state.is_active:
        done = f": {state.stage} {state.done} of {state.total}" if state.stage and state.total else ""
        percent = round(100 * state.done / state.total) if state.total else 0
        return (
            f'<p role="status">Writing {html.escape(target)}{html.escape(done)}</p><div class="progress-bar" '
            f'role="progressbar" aria-label="Export" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}">'
            f'<i style="width:{percent}%"></i></div>'
        )
    if state.status == "finished":
        return notes(output.splitlines(), f"Written: {target}")
    return panel([f"{target} was not written: {state.error or state.status}"])


def empty(text: str) -> str:
    """What stands where nothing is yet, with the next thing to do."""
    return f'<p class="empty" role="status">{html.escape(text)}</p>'


def _chips(words: Sequence[str]) -> str:
    return " ".join(f"<code>{html.escape(word)}</code>" for word in words)


def _preview(path: Path | None) -> str:
    """The unfinished picture inside the page itself: it changes every second and is worth no request of its own."""
    if path is None:
        return ""
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:  # it was finished a moment ago
        return ""
    return f'<img class="unfinished" alt="The unfinished picture" src="data:image/jpeg;base64,{data}">'


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_TITLE else f"{line[: _SHOWN_TITLE - 3]}..."


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
