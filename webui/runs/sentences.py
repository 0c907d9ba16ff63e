"""Everything the page says about how a run stands, each sentence a function of the run's state; no HTML, no Gradio."""

from __future__ import annotations

from collections.abc import Iterable

from sdlora.runs.curves import Curves
from sdlora.runs.state import RunState


def has_begun(state: RunState) -> bool:
    """Whether a process ever worked on it."""
    return (
        state.is_active or state.step > 0 or state.updated_at is not None or state.status not in ("queued", "stopped")
    )


def badge(state: RunState) -> str:
    """The state in a word or two."""
    return "not begun" if state.status == "stopped" and not has_begun(state) else state.status


def gone(name: str) -> str:
    """What is said where a run is asked for that was deleted, or never was."""
    return f"The run {name} is not there any more."


def headline(state: RunState) -> str:
    """What stands behind a run's name."""
    at = f"at step {state.step:,}" + (f" of {state.total_steps:,}" if state.total_steps else "")
    match state.status:
        case "queued":
            return "waits for its turn in the queue"
        case "starting":
            return state.stage or "is starting"
        case "running":
            return "is training"
        case "stopping":
            return "was asked to stop and is saving"
        case "stopped" if not has_begun(state):
            return "has not begun"
        case "stopped" if not state.step:
            return "was stopped before its first step"
        case "stopped":
            return f"was stopped {at}; it can go on from there"
        case "finished":
            return f"is finished: {state.step:,} steps"
        case "failed":
            return f"failed {at}" if state.step else "failed before its first step"
        case "crashed":
            goes_on = "Resume goes on from the newest checkpoint" if state.step else "Resume begins it anew"
            return f"crashed {at}; {goes_on}" if state.step else f"crashed before its first step; {goes_on}"


def ending(state: RunState) -> str:
    """How a run that just trained ended, for the header."""
    endings = {
        "finished": "has finished",
        "stopped": "was stopped",
        "queued": "waits in the queue",
        "crashed": "has crashed: see the Runs tab",
        "failed": "has failed: see the Runs tab",
    }
    return endings.get(state.status, state.status)


def in_short(name: str, state: RunState, by: int) -> str:
    """Name and progress of an active run, for the header. by: percent are rounded down to multiples of this."""
    if state.status == "running" and state.total_steps:
        percent = round(100 * state.step / state.total_steps) // by * by
        return f"{name}: {percent} % of {state.total_steps:,} steps"
    return f"{name}: {state.stage or state.status}"


def no_loss(state: RunState) -> str:
    """What stands where the loss curve is not yet, or never."""
    if state.status == "queued" or not has_begun(state):
        return "The loss is drawn here once the run trains."
    if state.is_active:
        return "The loss is drawn here from the first step on."
    return "This run ended before its first step, so there is no loss to show."


def still_read(curves: Iterable[Curves]) -> str:
    """What stands over a curve while only the first part of a very long log has been read."""
    if not any(each.unread for each in curves):
        return ""
    return "The log is very long and still being read: these are its first steps, the rest is coming."


def no_previews(state: RunState, has_prompts: bool) -> str:
    """What stands where the previews are not yet, or never."""
    if not has_prompts:
        return (
            'This run has no preview prompts. Write some under "Preview prompts" on the Train tab before the next one: '
            "they are generated before training, with fixed seeds, and again as the run goes on."
        )
    if state.is_active and "preview" in (state.stage or ""):
        done = f": {state.stage_done} of {state.stage_total}" if state.stage_total else ""
        return f"The first previews are being generated{done}."
    if state.is_active:
        return "The first previews are generated before training begins."
    if state.status == "queued" or not has_begun(state):
        return "Previews are generated once the run begins."
    return "This run ended before its first previews were generated."


def no_files(state: RunState) -> str:
    """What stands where the adapter files are not yet, or never."""
    if state.status == "running":
        return "No adapter file yet. Save now writes one, and so does the end of the run."
    if state.is_active:
        return "No adapter file yet: the first is written while it trains, and one at its end."
    if state.status == "queued" or not has_begun(state):
        return "Adapter files appear here once the run trains."
    return "This run ended before it wrote an adapter file."


def evaluation(state: RunState, num_files: int) -> str:
    """What stands where an evaluation is not yet, and none runs."""
    if state.status == "queued" or not has_begun(state):
        return "It can be evaluated once it has trained: that tells which of its checkpoints to take."
    if state.is_active:
        return "It can be evaluated once it has stopped or is finished: that tells which of its checkpoints to take."
    if not num_files:
        return "There is no checkpoint to evaluate: this run wrote no adapter file."
    return (
        "Not evaluated yet. Every checkpoint generates the same prompts with the same seeds; the pictures are compared "
        "with the training images and with those of the base model, and one checkpoint is recommended, with reasons."
    )


def no_log(state: RunState) -> str:
    """What stands where the log is not yet."""
    return "No log yet: the run has not begun." if not has_begun(state) else "Its log is empty."
