"""The learning benchmark holds together: its recipes load, its sets are drawn, and its reckoning is right."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sdlora.config import files
from tests.benchmarks import learning_report, learning_sets
from tests.benchmarks.learning_recipes import BASELINES, RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_a_training_that_can_be_started(recipe: str) -> None:
    config = files.load(overrides=RECIPES[recipe].all_settings)
    assert config.base_model.model == "builtin:emoji"
    assert RECIPES[recipe].source
    assert set(BASELINES) < set(RECIPES)


@pytest.mark.parametrize("name", learning_sets.TRIGGERS)
def test_a_set_has_every_fourth_picture_held_out(name: str, tmp_path: Path) -> None:
    trained, held_out = learning_sets.prepare(name, tmp_path)
    names = [{path.stem for path in folder.glob("*.png")} for folder in (trained, held_out)]
    assert not names[0] & names[1]
    assert len(names[0]) == 3 * len(names[1]) >= 12
    for folder in (trained, held_out):
        for path in folder.glob("*.png"):
            assert learning_sets.TRIGGERS[name] in path.with_suffix(".txt").read_text(encoding="utf-8")


def test_steps_are_counted_until_the_goal_is_reached() -> None:
    points = [{"step": step, "loss": loss} for step, loss in ((0, 1.0), (25, 0.6), (50, 0.4), (75, 0.5))]
    assert learning_report.reached(points, 0.5) == pytest.approx(37.5)
    assert learning_report.reached(points, 0.6) == pytest.approx(25)
    assert math.isinf(learning_report.reached(points, 0.3))
    assert learning_report.area(points, 50) == pytest.approx((0.8 + 0.5) / 2)


def test_the_baseline_is_the_best_mean_over_seeds_at_one_step() -> None:
    def measured(recipe: str, seed: int, *losses: float) -> dict:
        points = [{"step": 25 * at, "loss": loss} for at, loss in enumerate(losses)]
        return {"set": "ink", "recipe": recipe, "seed": seed, "points": points}

    runs = [measured("diffusers-1e-3", 0, 1.0, 0.3, 0.7), measured("diffusers-1e-3", 1, 1.0, 0.7, 0.5)]
    runs.append(measured("unet", 0, 1.0, 0.1, 0.1))
    assert learning_report.baseline(runs, "ink") == pytest.approx(0.5)
    assert math.isinf(learning_report.baseline(runs, "mascot"))
