"""Runs in words and figures: their list, the queue, one run's state, its files, and what tells several apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdlora.config.schema import ABSENT
from sdlora.launch.runs import RunHandle
from sdlora.launch.watch import Snapshot, WatchedRun, settings_that_differ
from sdlora.runs.results import RunAdapterFile, RunEmbeddingFile
from sdlora.runs.state import MIN_STEPS_FOR_SPEED, RunState
from sdlora.words import duration_in_words, speed_in_words
from webui.news import Told
from webui.runs import sentences
from webui.templating import macros

_HTML = macros("runs.html")
SILENT_SECONDS = 120.0
KILL_OFFERED_SECONDS = 20.0
_MESSAGES_SHOWN = 20
_HALF_A_DAY_SECONDS = 43_200

compare_more = _HTML.compare_more
"""What stands where too few runs are chosen to compare."""
question = _HTML.question
"""What is asked before a run is killed or deleted."""


# ---- lists


def run_list(seen: Snapshot, selected: str | None) -> str:
    """All runs, newest first, each a button."""
    return str(_HTML.run_list([(*row, row[0] == selected) for row in run_rows(seen)]))


def run_rows(seen: Snapshot) -> list[tuple[str, str, str, list[str]]]:
    """Of all runs, newest first: name, status, that in a word or two, and some figures."""
    return [(run.name, run.state.status, sentences.badge(run.state), _facts_of_row(run)) for run in seen.runs]


def queue(seen: Snapshot) -> str:
    """The waiting runs in their order, with what can be done about it; nothing when none waits and nothing is held."""
    return str(_HTML.queue(seen.waiting, seen.is_held))


def _facts_of_row(run: WatchedRun) -> list[str]:
    state = run.state
    facts = [_steps(state)] if state.step or state.total_steps else []
    if state.loss is not None:
        facts.append(f"loss {state.loss:.4f}")
    return [*facts, _moment(run.created_at)]


def _moment(seconds: float) -> str:
    """A moment as people write it, in the server's time."""
    is_recent = time.time() - seconds < _HALF_A_DAY_SECONDS
    return time.strftime("%H:%M" if is_recent else "%d %b %Y", time.localtime(seconds))


# ---- one run


def headline(run: WatchedRun) -> str:
    """One sentence that changes with the run's state only, for screen readers too."""
    state = run.state
    return str(
        _HTML.headline(run.name, state.status, sentences.badge(state), sentences.headline(state), state.last_error)
    )


def figures(state: RunState) -> str:
    """Progress bar, speed, remaining time, loss and memory of a run."""
    if state.status == "queued":
        return ""
    label, text, share = _progress(state)
    silent = ""
    if state.is_active and (state.silent_seconds or 0) > SILENT_SECONDS:
        silent = duration_in_words(state.silent_seconds or 0)
    return str(_HTML.figures(label, text, 100 * min(1.0, max(0.0, share)), _facts(state), silent))


def kill_hint(state: RunState | None, asked_at: float | None) -> str:
    """What to do about a run that doesn't stop, once it had its time."""
    if state is None or state.status != "stopping" or asked_at is None:
        return ""
    return "" if time.time() - asked_at < KILL_OFFERED_SECONDS else str(_HTML.kill_hint())


def messages(found: Sequence[tuple[str, str]]) -> str:
    """The newest warnings and remarks of a run: kind and text."""
    return str(_HTML.messages(found[-_MESSAGES_SHOWN:]))


def outcome(
    run: WatchedRun, files: Sequence[RunAdapterFile], pair: str, embeddings: Sequence[RunEmbeddingFile] = ()
) -> str:
    """What a run that has ended is good for: its first and last picture, and what to do with its newest file."""
    newest: list[Path] = [file.path for file in (files[-1:] or embeddings[-1:])]
    if run.state.is_active or not newest or not newest[0].is_file():
        return ""
    return str(_HTML.outcome(run.name, newest[0], run.handle.folder, pair, bool(files)))


def first_request(handle: RunHandle, prompt: str, embedding_folders: str = "") -> dict[str, Any]:
    """What Generate shows for a first picture with what a run trained, by dotted name.

    prompt, embedding_folders: what it shows now. An adapter brings its new tokens along; tokens that were trained alone
    are found in the run's folder.
    """
    config = handle.config()
    trigger = config.captions.trigger or ""
    shown: dict[str, Any] = {"base_model.model": config.base_model.model}
    # A prompt with the trigger in it was written for this adapter; any other would not call it up.
    if prompt.strip() and trigger.casefold() in prompt.casefold():
        shown["prompt"] = prompt
    elif first := next(iter(config.previews.parsed), None):
        # All of the preview's settings, not its words alone: the picture is to look as it did in the run.
        for name in ("prompt", "negative", "steps", "guidance", "sampler", "width_px", "height_px"):
            own = getattr(first, name)
            shown[name] = getattr(config.previews, name) if own is None else own
        for side in ("width_px", "height_px"):
            shown[side] = shown[side] or config.images.resolutions[0]
    else:
        shown["prompt"] = trigger
    if config.adapter.rank == 0:
        folders = [*embedding_folders.splitlines(), str(handle.folder)]
        shown["embedding_folders"] = "\n".join(dict.fromkeys(folders))
    return shown


def adapter_files(files: Sequence[RunAdapterFile], state: RunState, embeddings: Sequence[RunEmbeddingFile] = ()) -> str:
    """The adapter files, the finished one first, each to download; then the embeddings of new tokens."""
    rows = []
    for file in reversed(files):
        size = file.path.stat().st_size / 2**20 if file.path.is_file() else 0.0
        best = " · best by validation" if file.is_best else ""
        rows.append((file.path, f"{_when(file.step)}{best} · {size:.1f} MiB"))
    for embedding in reversed(embeddings):
        size = embedding.path.stat().st_size / 2**10 if embedding.path.is_file() else 0.0
        rows.append((embedding.path, f"{_when(embedding.step)} · new token {embedding.token} · {size:.1f} KiB"))
    return str(_HTML.adapter_files(rows, sentences.no_files(state)))


def _when(step: int | None) -> str:
    return "finished" if step is None else f"step {step:,}"


def _steps(state: RunState) -> str:
    return f"{state.step:,} / {state.total_steps:,}" if state.total_steps else f"step {state.step:,}"


def _progress(state: RunState) -> tuple[str, str, float]:
    """Label, text and share of the progress bar."""
    is_starting = state.status == "starting"
    if state.stage_total and state.status in ("starting", "running", "stopping"):
        stage = f"{state.stage or ''}: {state.stage_done:,} of {state.stage_total:,}"
        if is_starting:
            return "Preparation", stage, state.stage_done / state.stage_total
        return "Training", f"{_steps(state)} steps; {stage}", state.step / (state.total_steps or 1)
    if not state.total_steps:
        return "Training", "loading the base model" if is_starting else "no step yet", 0.0
    return "Training", f"{_steps(state)} steps", state.step / state.total_steps


def _facts(state: RunState) -> list[tuple[str, str, bool]]:
    """Name, value, and whether the value is known already."""
    facts: list[tuple[str, str, bool]] = []
    if state.is_active and state.status != "starting":
        if state.steps_per_second:
            facts.append(("Speed", speed_in_words(1 / state.steps_per_second), True))
        else:
            facts.append(("Speed", f"known after {MIN_STEPS_FOR_SPEED} steps", False))
        if state.eta_seconds is not None:
            facts.append(("Left", f"about {duration_in_words(state.eta_seconds)}", True))
    if state.loss is not None:
        facts.append(("Loss", f"{state.loss:.4f}", True))
    if state.memory_gib is not None:
        facts.append(("Memory", f"{state.memory_gib:.1f} GiB", True))
    return facts


# ---- several runs


def compared(runs: Sequence[WatchedRun], chart: str, previews: str) -> str:
    """Runs laid over each other: their curves, the settings in which they differ, their newest previews."""
    rows = [(name, [_value_in_words(value) for value in values]) for name, values in settings_that_differ(runs)]
    return str(_HTML.compared(chart, [run.name for run in runs], rows, previews))


def _value_in_words(value: Any) -> str:
    if value is None:
        return "default"
    if value is ABSENT:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) for entry in value) or "none"
    return str(value)


# ---- the header


class StatusLine:
    """One line: what trains now, else how the last one ended. Spoken is each tenth of the way only."""

    def __init__(self) -> None:
        self._active: frozenset[str] = frozenset()
        self._ended = ""

    def told(self, seen: Snapshot) -> Told:
        """The line for the runs as they are now."""
        active = frozenset(run.name for run in seen.active)
        # A run that is gone without a trace was deleted, which needs no words.
        for name in self._active - active:
            if (run := seen.find(name)) is not None:
                self._ended = f"{name} {sentences.ending(run.state)}"
        self._active = active
        runs = sorted(seen.active, key=lambda run: run.name)
        words, spoken = ("; ".join(sentences.in_short(run.name, run.state, by) for run in runs) for by in (1, 10))
        return Told(words or self._ended, spoken or self._ended)
