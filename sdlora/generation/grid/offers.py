"""What a grid can vary, offered to choose from, and the choice as the texts that `axes.parse_axes` reads."""

from __future__ import annotations

from collections.abc import Sequence

from sdlora.errors import ConfigError
from sdlora.library.rows import Rows

CHECKPOINT = "checkpoint"
COMPARE = "compare"
NOTHING = ("Nothing", "")
_FIXED = (
    ("Seed", "seed"),
    ("Steps", "steps"),
    ("Sampler", "sampler"),
    ("CFG", "guidance"),
    ("Prompt: search and replace", "replace"),
    ("Size", "size"),
    ("Training step of a run", CHECKPOINT),
    ("Base model", "base_model.model"),
    ("Clip skip", "base_model.clip_skip"),
    ("Strength of the start image", "start.strength"),
    ("Scale of the second pass", "second_pass.scale"),
)
_HINTS = {
    "seed": "1, 2, 3 or 1:5:1",
    "steps": "10:30:5",
    "sampler": "Euler a, DDIM, DPM++ 2M Karras",
    "guidance": "3:9:2",
    "replace": "cat, dog, bird: the first is looked for, then replaced by the others",
    "size": "512x512, 640x448",
    CHECKPOINT: "100, 200, final or all",
    "base_model.model": "builtin:emoji, models/other.safetensors",
    "base_model.clip_skip": "1, 2",
    "start.strength": "0.3:0.9:0.2",
    "second_pass.scale": "1, 1.5, 2",
    COMPARE: "no values needed",
}
_WEIGHTS_HINT = "0:1.2:0.2 (start:end:step) or 0, 0.5, 1"


def choices(rows: Rows) -> list[tuple[str, str]]:
    """Label and name of every axis, those of the enabled adapters included.

    An adapter's axes are named by its row, so that a choice stays with it when the rows are moved.
    """
    used = [row for row in rows if row.enabled]
    offered = [NOTHING, *((f"Weight of {row.name}", f"row{row.id}.weight") for row in used)]
    if used:
        offered.append(("Adapters: none, each, together", COMPARE))
    offered += _FIXED
    for row in used:
        offered.append((f"Text encoder weight of {row.name}", f"row{row.id}.text_encoder"))
        offered.append((f"File in place of {row.name}", f"row{row.id}.file"))
    return offered


def hint(axis: str | None) -> str:
    """An example of an axis' values."""
    if not axis:
        return ""
    if axis.endswith(".file"):
        return "names from the library, or none"
    return _WEIGHTS_HINT if axis.startswith("row") else _HINTS.get(axis, "")


def spell(axes: Sequence[tuple[str | None, str | None]], rows: Rows = ()) -> list[str]:
    """The chosen axes and their values as texts, x, y and z in place. Raises ConfigError with every problem.

    rows: the adapters in use, which axes count by their place.
    """
    places = {f"row{row.id}": f"adapter{index}" for index, row in enumerate((row for row in rows if row.enabled), 1)}
    texts, problems = [], []
    for place, (axis, values) in zip("xyz", axes, strict=True):
        if not axis:
            continue
        if axis == COMPARE:
            texts.append(f"{place}={COMPARE}")
        elif axis.startswith("row") and axis.partition(".")[0] not in places:
            problems.append(f"{place.upper()}: its adapter is not in use any more, or switched off")
        elif not (values or "").strip():
            problems.append(f"{place.upper()}: give values, such as {hint(axis)}")
        else:
            adapter, dot, field = axis.partition(".")
            texts.append(f"{place}={places.get(adapter, adapter)}{dot}{field}={values}")
    if not texts and not problems:
        problems.append("choose what the grid varies, along X at least")
    if problems:
        raise ConfigError("the grid", problems)
    return texts
