"""Table and chart of what the learning benchmark has measured: `python -m tests.benchmarks.learning_report FOLDER`.

Prints a Markdown table for each set and writes FOLDER/learning.json and FOLDER/learning.png. A recipe's steps and CPU
seconds are counted until it reaches the best loss that any baseline had on the same set at any rate and step.
`averaged` is the mean of the checkpoints of the second half of the steps so far (post-hoc, after Karras et al. 2024).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sdlora import atomic
from tests.benchmarks.learning_recipes import BASELINES, RECIPES

Point = dict[str, float]
SHOWN = (25, 50, 75, 100, 150, 300)
AREA = 75
"""Steps that the area under the curve covers: all runs are at least so long."""
_COLOURS = (
    "#1f6fb4", "#d1495b", "#3a9d5d", "#8d5fc4", "#e08a1e", "#17a2a2", "#7a5c3e", "#d45fa8", "#5c6b7a", "#9aa51e",
    "#7ec3ff", "#ff9b9b", "#7fe0a0", "#c9a7f5", "#ffc46b", "#111111", "#a30000", "#005f3c", "#3c0a7a", "#b5b5b5",
)  # fmt: skip
_WIDTH_PX, _HEIGHT_PX, _MARGIN_PX, _LEGEND_PX = 620, 360, 56, 170


def results(root: Path) -> list[dict[str, Any]]:
    """Everything measured so far; of runs that differ in length alone the longest."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in sorted((root / "results").glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        key = one["set"], one["recipe"], one["seed"]
        if one["recipe"] in RECIPES and (key not in found or one["steps"] > found[key]["steps"]):
            found[key] = one
    return sorted(found.values(), key=lambda one: (one["set"], list(RECIPES).index(one["recipe"]), one["seed"]))


def area(points: Sequence[Point], until: int) -> float:
    """Mean held-out loss over steps 0 to `until`, by trapezoids."""
    used = [point for point in points if point["step"] <= until]
    return sum((a["loss"] + b["loss"]) / 2 * (b["step"] - a["step"]) for a, b in pairwise(used)) / until


def reached(points: Sequence[Point], loss: float) -> float:
    """The step at which a loss is reached, between two points on their line; infinite when it never is."""
    for before, after in pairwise(points):
        if after["loss"] <= loss:
            share = (before["loss"] - loss) / (before["loss"] - after["loss"])
            return before["step"] + max(0.0, share) * (after["step"] - before["step"])
    return math.inf


def table(measured: Sequence[dict[str, Any]], set_name: str) -> str:
    """Markdown: a row for each recipe on a set, means over its seeds."""
    by_recipe: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in measured:
        if one["set"] == set_name:
            by_recipe[one["recipe"]].append(one)
    goal = baseline(measured, set_name)
    steps = [step for step in SHOWN if any(_loss(one, step) is not None for runs in by_recipe.values() for one in runs)]
    header = [
        "recipe",
        "seeds",
        *(f"at {step}" for step in steps),
        f"mean to {AREA}",
        "best (step)",
        "averaged (step)",
        "norm",
    ]
    header += [f"steps to {goal:.4f}", "CPU s to it"] if goal < math.inf else []
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for recipe, runs in by_recipe.items():
        cells = [recipe, str(len(runs)), *(_mean([_loss(one, step) for one in runs]) for step in steps)]
        cells.append(_mean([area(one["points"], AREA) for one in runs]))
        bests = [min(one["points"], key=lambda point: point["loss"]) for one in runs]
        at = "/".join(str(best["step"]) for best in bests)
        cells.append(f"{_mean([best['loss'] for best in bests])} ({at})")
        averages = [one["averaged"][-1] for one in runs if len(one["averaged"]) > 1]
        cells.append(f"{_mean([each['loss'] for each in averages])} ({averages[0]['step']})" if averages else "")
        cells.append(f"{statistics.mean(one['points'][-1]['norm'] for one in runs):.1f}")
        if goal < math.inf:
            needed = [reached(one["points"], goal) for one in runs]
            seconds = [step * one["seconds_a_step"] for step, one in zip(needed, runs, strict=True)]
            ends = [(one["steps"], one["steps"] * one["seconds_a_step"]) for one in runs]
            cells += [_counts(needed, [end for end, _ in ends]), _counts(seconds, [end for _, end in ends])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def baseline(measured: Sequence[dict[str, Any]], set_name: str) -> float:
    """The best loss of any baseline on a set, the mean over its seeds at its best step; infinite without one."""
    best = math.inf
    for recipe in BASELINES:
        runs = [one for one in measured if (one["set"], one["recipe"]) == (set_name, recipe)]
        for step in {int(point["step"]) for one in runs for point in one["points"]}:
            losses = [loss for one in runs if (loss := _loss(one, step)) is not None]
            if len(losses) == len(runs):
                best = min(best, statistics.mean(losses))
    return best


def _loss(one: dict[str, Any], step: int) -> float | None:
    return next((float(point["loss"]) for point in one["points"] if point["step"] == step), None)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.4f}" if known and len(known) == len(values) else ""


def _counts(values: Sequence[float], ends: Sequence[float]) -> str:
    """Each seed's number, or that it is more than there was."""
    counts = [f"{min(value, end):.0f}" for value, end in zip(values, ends, strict=True)]
    return "/".join(f"> {count}" if math.isinf(value) else count for value, count in zip(values, counts, strict=True))


def chart(measured: Sequence[dict[str, Any]], set_name: str) -> Image.Image:
    """Held-out loss against steps on one set, a line for each recipe."""
    curves: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    for one in measured:
        if one["set"] == set_name:
            curves[one["recipe"]].append([(point["step"], point["loss"]) for point in one["points"][1:]])
    places = [place for lines in curves.values() for line in lines for place in line]
    last = max(step for step, _ in places)
    low, high = (choose(loss for _, loss in places) for choose in (min, max))
    image = Image.new("RGB", (_WIDTH_PX + 2 * _MARGIN_PX + _LEGEND_PX, _HEIGHT_PX + 2 * _MARGIN_PX), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)

    def at(step: float, loss: float) -> tuple[float, float]:
        height = min(1.0, (loss - low) / max(high - low, 1e-9))
        return _MARGIN_PX + step / last * _WIDTH_PX, _MARGIN_PX + (1.0 - height) * _HEIGHT_PX

    draw.text((_MARGIN_PX, 16), f"{set_name}: loss on held-out pictures", "#222222", ImageFont.load_default(18))
    for part in range(5):
        loss = low + (high - low) * part / 4
        draw.line((*at(0, loss), *at(last, loss)), "#e3e3e3")
        draw.text((6, at(0, loss)[1] - 8), f"{loss:.4f}", "#555555", font)
        draw.text(
            (at(last * part / 4, low)[0] - 8, _HEIGHT_PX + _MARGIN_PX + 6), f"{last * part / 4:.0f}", "#555555", font
        )
    for index, (recipe, lines) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        width = 4 if recipe in BASELINES else 2
        for line in lines:
            draw.line([at(*place) for place in line], colour, width)
        top = _MARGIN_PX + 18 * index
        draw.line((_WIDTH_PX + 2 * _MARGIN_PX - 40, top + 8, _WIDTH_PX + 2 * _MARGIN_PX - 20, top + 8), colour, width)
        draw.text((_WIDTH_PX + 2 * _MARGIN_PX - 14, top), recipe, "#222222", font)
    return image


def main() -> None:
    """Print, and write the summary and the charts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder.resolve()
    measured = results(root)
    atomic.write_text(root / "learning.json", json.dumps(measured, indent=1))
    charts = []
    for set_name in dict.fromkeys(one["set"] for one in measured):
        print(f"\n### {set_name}\n\n{table(measured, set_name)}")
        charts.append(chart(measured, set_name))
    if charts:
        whole = Image.new("RGB", (charts[0].width, sum(one.height for one in charts)), "white")
        top = 0
        for one in charts:
            whole.paste(one, (0, top))
            top += one.height
        whole.quantize(64).save(root / "learning.png", optimize=True)


if __name__ == "__main__":
    main()
