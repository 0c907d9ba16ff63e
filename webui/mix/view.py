"""What the Mix tab shows: an adapter's card, an export."""

from __future__ import annotations

from collections.abc import Sequence

from sdlora.launch.jobs import JobState
from sdlora.library.prompt_tags import UNTAGGABLE
from sdlora.library.rows import Row
from sdlora.library.scan import LibraryEntry
from sdlora.words import count
from webui.pieces import notes
from webui.problems import panel
from webui.templating import macros

_HTML = macros("mix.html")


def card(entry: LibraryEntry | None) -> str:
    """What an adapter says about itself."""
    if entry is None:
        return ""
    about = entry.about
    text_encoder = "trained" if about.trains_text_encoder else "untouched"
    facts = [summary(entry), f"{count(about.num_layers, 'layer')}, text encoder {text_encoder}"]
    facts += [f"trained on {about.base_model}"] if about.base_model else []
    facts += [] if about.preferred_weight is None else [f"preferred weight {about.preferred_weight:g}"]
    return str(_HTML.card(about.title or entry.name, "; ".join(facts), about, entry.path))


def rows(
    found: Sequence[tuple[Row, LibraryEntry | None, bool]],
    tab: str,
    refused: object,
    presets: Sequence[str],
    sweep: str,
) -> str:
    """The adapters in use, each with whether the text leaves it out; in Mix with everything that can be set.

    refused: what was typed and not taken.
    """
    shown = [
        (row, "file is gone" if entry is None else summary(entry), _words(entry), UNTAGGABLE if is_left_out else "")
        for row, entry, is_left_out in found
    ]
    return str(_HTML.rows(tab, shown, refused, presets, sweep))


def _words(entry: LibraryEntry | None) -> tuple[str, str] | None:
    """What an adapter is called up by, and what that is."""
    about = entry.about if entry else None
    if about is None or not (about.trigger or about.tags):
        return None
    return ("Trigger words", about.trigger) if about.trigger else ("Trained tags", ", ".join(about.tags[:3]))


def summary(entry: LibraryEntry) -> str:
    """Family, kind, rank and size in a line."""
    about, mebibytes = entry.about, entry.file.size_bytes / 2**20
    size = f"{mebibytes:.1f} MiB" if mebibytes >= 0.1 else f"{entry.file.size_bytes / 1024:.1f} KiB"
    return f"{about.family or 'unknown family'} · {about.kind} rank {about.rank} · {size}"


def export(state: JobState | None, output: str, target: str) -> str:
    """An export's bar while it runs, then what it printed, or why it failed; empty without one. target: its file."""
    if state is None:
        return ""
    if state.is_active:
        done = f": {state.stage} {state.done} of {state.total}" if state.stage and state.total else ""
        percent = round(100 * state.done / state.total) if state.total else 0
        return str(_HTML.export_running(f"Writing {target}{done}", percent))
    if state.status == "finished":
        return notes(output.splitlines(), f"Written: {target}")
    return panel([f"{target} was not written: {state.error or state.status}"])
