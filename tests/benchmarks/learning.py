"""How fast and how well recipes learn the same pictures: sets x seeds x recipes, in held-out loss.

`python -m tests.benchmarks.learning FOLDER --sets ink,mascot --recipes unet,lora+4 --seeds 0 --steps 200` trains what
FOLDER doesn't hold yet, one result a file, and can be stopped and started again at any time. `learning_report` makes
table and chart of what is there.

A result has the loss on held-out pictures each 25 steps, with fixed noise and by diffusers alone (`held_out_loss`), the
norm of the update, and CPU seconds. One core, `nice -n 19`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

import sdlora
from sdlora import atomic
from sdlora.config import files
from sdlora.events import CheckpointSaved, Event, StepFinished
from tests.benchmarks import learning_sets
from tests.benchmarks.held_out_loss import HeldOutLoss, average, update_norm
from tests.benchmarks.learning_recipes import RECIPES

BASE = Path(sdlora.__file__).parent / "models" / "builtin" / "emoji"
EVERY = 25
SIZE_PX = 128


class _Clock:
    """Takes the CPU seconds of each step; those after a checkpoint hold its writing and are left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def emit(self, event: Event) -> None:
        if isinstance(event, StepFinished):
            now = time.process_time()
            if self._last is not None:
                self.seconds.append(now - self._last)
            self._last = now
        elif isinstance(event, CheckpointSaved):
            self._last = None

    def close(self) -> None:
        """There is nothing to close."""


def run(root: Path, set_name: str, recipe: str, seed: int, steps: int, losses: HeldOutLoss) -> dict[str, Any]:
    """Train once and measure every checkpoint; returns the result."""
    trained, _ = learning_sets.prepare(set_name, root / "sets")
    scratch = root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    settings = [
        *RECIPES[recipe].all_settings,
        f"name={set_name}",
        f"seed={seed}",
        f"images.folder={trained}",
        f"images.cache_folder={root / 'cache'}",
        f"captions.trigger={learning_sets.TRIGGERS[set_name]}",
        f"optimization.steps={steps}",
        f"outputs.folder={scratch}",
        f"outputs.checkpoint_every={EVERY}",
        "outputs.keep_checkpoints=1000",
        "outputs.precision=fp32",
        "outputs.self_test=false",
    ]
    clock = _Clock()
    folder = sdlora.train(files.load(overrides=settings), sinks=[clock]).folder
    points = [{"step": 0, "loss": losses.of(None), "norm": 0.0}]
    checkpoints = []
    for path in sorted(folder.glob("checkpoints/step_*")):
        (adapter,) = path.glob("*.safetensors")
        checkpoints.append(adapter)
        step = int(path.name.removeprefix("step_"))
        points.append({"step": step, "loss": losses.of(adapter), "norm": update_norm(adapter)})
    if points[-1]["step"] != steps:
        raise SystemExit(f"stopped at step {points[-1]['step']}; nothing was written")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    result = {
        "set": set_name,
        "recipe": recipe,
        "seed": seed,
        "steps": steps,
        "settings": list(RECIPES[recipe].settings),
        "seconds_a_step": statistics.median(clock.seconds),
        "points": points,
        "training_losses": [event["loss"] for event in events if event["kind"] == "step_finished"],
        "averaged": _averaged(checkpoints, points, scratch, losses),
    }
    shutil.rmtree(scratch)
    return result


def _averaged(
    checkpoints: Sequence[Path], points: Sequence[dict[str, float]], scratch: Path, losses: HeldOutLoss
) -> list[dict[str, float]]:
    """The loss of averages over the last half of the checkpoints so far, at every hundredth step.

    Post-hoc averaging (Karras et al. 2024, section 3) by what a run has kept, with even weights.
    """
    found = []
    for end, point in enumerate(points[1:], start=1):
        if point["step"] % 50 == 0:
            kept = checkpoints[end // 2 : end]
            mean = average(kept, [1.0] * len(kept), scratch / "average.safetensors")
            found.append({"step": point["step"], "loss": losses.of(mean), "norm": update_norm(mean)})
    return found


def grid(root: Path, sets: Sequence[str], recipes: Sequence[str], seeds: Sequence[int], steps: int) -> None:
    """Train and measure what is missing, recipe by recipe over all sets, so that a stop leaves whole rows."""
    done = root / "results"
    done.mkdir(parents=True, exist_ok=True)
    measures: dict[str, HeldOutLoss] = {}
    for seed, recipe, set_name in product(seeds, recipes, sets):
        target = done / f"{set_name}_{recipe}_{seed}_{steps}.json"
        if target.exists():
            continue
        if set_name not in measures:
            _, held_out = learning_sets.prepare(set_name, root / "sets")
            measures[set_name] = HeldOutLoss(BASE, held_out, SIZE_PX)
        result = run(root, set_name, recipe, seed, steps, measures[set_name])
        atomic.write_text(target, json.dumps(result))
        best = min(result["points"], key=lambda point: point["loss"])
        print(f"{target.stem}: best {best['loss']:.5f} at {best['step']}, last {result['points'][-1]['loss']:.5f}, "
              f"{result['seconds_a_step']:.2f} CPU s a step", flush=True)  # fmt: skip
        gc.collect()


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default=",".join(learning_sets.CHOOSING))
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    unknown = (
        set(given.recipes.split(",")) - RECIPES.keys() | set(given.sets.split(",")) - learning_sets.TRIGGERS.keys()
    )
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    os.nice(max(0, 19 - os.getpriority(os.PRIO_PROCESS, 0)))
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    grid(given.folder.resolve(), given.sets.split(","), given.recipes.split(","), seeds, given.steps)


if __name__ == "__main__":
    main()
