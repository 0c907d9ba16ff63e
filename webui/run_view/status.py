"""A run's state in words and figures: the list of runs, the queue, the status line, the progress bar."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass

from sdlora.runs.state import MIN_STEPS_FOR_SPEED, RunState
from sdlora.sinks.terminal import duration_in_words, speed_in_words
from webui.run_view.watch import Look, SeenRun

SILENT_SECONDS = 120.0
KILL_OFFERED_SECONDS = 20.0

NO_RUNS = (
    '<div class="empty-state"><p>No runs yet. Choose a preset and a dataset, then press Start.</p>'
    '<button type="button" data-tab="train">Set up a run</button></div>'
)


@dataclass(frozen=True)
class Buttons:
    """Which actions a run offers in its state."""

    stop: bool
    kill: bool
    resume: bool
    save: bool
    preview: bool
    delete: bool


def buttons(state: RunState | None) -> Buttons:
    """The actions that make sense for a run that stands so; none without a run."""
    if state is None:
        return Buttons(False, False, False, False, False, False)
    trains = state.status == "running"
    return Buttons(
        stop=state.status in ("running", "starting"),
        kill=state.status == "stopping",
        resume=state.can_start,
        save=trains,
        preview=trains,
        delete=not state.is_active,
    )


def badge(state: RunState) -> str:
    """The status as a coloured word."""
    return f'<span class="badge {state.status}">{state.status}</span>'


def run_list(look: Look, selected: str | None) -> str:
    """All runs, newest first, each a button."""
    if not look.runs:
        return NO_RUNS
    rows = "".join(_row(run, run.name == selected) for run in look.runs)
    return f'<ul class="run-list" aria-label="Runs, newest first">{rows}</ul>'


def queue_list(look: Look) -> str:
    """The waiting runs in their order, with what can be done about it; nothing when none waits and nothing is held."""
    if not look.waiting and not look.is_held:
        return ""
    rows = []
    for position, name in enumerate(look.waiting):
        shown = html.escape(name)
        acts = [
            ("up", "▲", "Move up", position > 0),
            ("down", "▼", "Move down", position < len(look.waiting) - 1),
            ("remove", "✕", "Take out of the queue:", True),
        ]
        pressed = "".join(
            f'<button type="button" data-queue="{act}" data-run="{html.escape(name, quote=True)}" '
            f'aria-label="{words} {html.escape(name, quote=True)}" title="{words}"{"" if is_on else " disabled"}>'
            f"{sign}</button>"
            for act, sign, words, is_on in acts
        )
        rows.append(f"<li><span>{shown}</span><span class='acts'>{pressed}</span></li>")
    held = (
        "<p>Held: nothing is started.</p><button type='button' data-queue='release'>Let the queue go on</button>"
        if look.is_held
        else "<button type='button' data-queue='hold'>Hold the queue</button>"
    )
    listed = f"<ol>{''.join(rows)}</ol>" if rows else "<p>Nobody waits.</p>"
    return f'<section class="queue" aria-label="Queue"><h3>Queue</h3>{listed}{held}</section>'


def headline(run: SeenRun) -> str:
    """One sentence that changes with the run's state only, for screen readers too."""
    state, name = run.state, html.escape(run.name)
    total = state.total_steps
    of_total = f" of {total:,}" if total else ""
    sentence = {
        "queued": "waits for its turn in the queue",
        "starting": state.stage or "is starting",
        "running": "is training",
        "stopping": "was asked to stop and is saving",
        "stopped": f"was stopped at step {state.step:,}{of_total}; it can go on from there"
        if state.step
        else "has not begun",
        "finished": f"is finished: {state.step:,} steps",
        "crashed": f"crashed at step {state.step:,}{of_total}; Resume goes on from the newest checkpoint",
        "failed": f"failed at step {state.step:,}{of_total}",
    }[state.status]
    return f"{badge(state)} <strong>{name}</strong> {html.escape(sentence)}{_error(state)}"


def figures(state: RunState) -> str:
    """Progress bar, speed, remaining time, loss and memory of a run."""
    if state.status == "queued":
        return ""
    parts = [_bar(state)]
    facts = [f"<dt>{label}</dt><dd>{value}</dd>" for label, value in _facts(state)]
    if facts:
        parts.append(f'<dl class="facts">{"".join(f"<div>{fact}</div>" for fact in facts)}</dl>')
    if state.is_active and (state.silent_seconds or 0) > SILENT_SECONDS:
        silent = duration_in_words(state.silent_seconds or 0)
        parts.append(f'<p class="hint">No news for {silent}. Its process lives; a look at the log may tell why.</p>')
    return "".join(parts)


def kill_hint(state: RunState | None, asked_at: float | None) -> str:
    """What to do about a run that doesn't stop, once it had its time."""
    if state is None or state.status != "stopping" or asked_at is None:
        return ""
    if time.time() - asked_at < KILL_OFFERED_SECONDS:
        return ""
    return '<p class="hint">It has not stopped yet. Kill ends it at once; steps since the last checkpoint are lost.</p>'


def when(seconds: float) -> str:
    """A moment as people write it, in the server's time."""
    moment = time.localtime(seconds)
    return time.strftime("%H:%M" if time.time() - seconds < 43_200 else "%d %b %Y", moment)


def _row(run: SeenRun, is_selected: bool) -> str:
    state = run.state
    facts = [_steps(state)] if state.step or state.total_steps else []
    if state.loss is not None:
        facts.append(f"loss {state.loss:.4f}")
    facts.append(when(run.handle.created_at))
    name = html.escape(run.name, quote=True)
    return (
        f'<li><button type="button" data-run="{name}" aria-pressed="{str(is_selected).lower()}">'
        f'<span class="name">{name}</span>{badge(state)}<span class="small">{" · ".join(facts)}</span></button></li>'
    )


def _steps(state: RunState) -> str:
    return f"{state.step:,} / {state.total_steps:,}" if state.total_steps else f"step {state.step:,}"


def _bar(state: RunState) -> str:
    if state.stage_total and state.status in ("starting", "running", "stopping"):
        stage = f"{html.escape(state.stage or '')}: {state.stage_done:,} of {state.stage_total:,}"
        if state.status == "starting":
            return _meter(state.stage_done / state.stage_total, stage, "Preparation")
        return _meter(state.step / (state.total_steps or 1), f"{_steps(state)} steps; {stage}", "Training")
    if not state.total_steps:
        return _meter(0.0, "loading the base model" if state.status == "starting" else "no step yet", "Training")
    return _meter(state.step / state.total_steps, f"{_steps(state)} steps", "Training")


def _meter(share: float, text: str, label: str) -> str:
    percent = 100 * min(1.0, max(0.0, share))
    return (
        f'<div class="run-progress" role="progressbar" aria-label="{label}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}"><span style="width:{percent:.1f}%"></span></div>'
        f'<p class="run-progress-text">{text}<span>{percent:.0f}%</span></p>'
    )


def _facts(state: RunState) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if state.is_active and state.status != "starting":
        if state.steps_per_second:
            facts.append(("Speed", speed_in_words(1 / state.steps_per_second)))
        else:
            facts.append(("Speed", f'<span class="unknown">known after {MIN_STEPS_FOR_SPEED} steps</span>'))
        if state.eta_seconds is not None:
            facts.append(("Left", f"about {duration_in_words(state.eta_seconds)}"))
    if state.loss is not None:
        facts.append(("Loss", f"{state.loss:.4f}"))
    if state.memory_gib is not None:
        facts.append(("Memory", f"{state.memory_gib:.1f} GiB"))
    return facts


def _error(state: RunState) -> str:
    if not state.last_error:
        return ""
    return f'<pre class="last-error">{html.escape(state.last_error)}</pre>'
