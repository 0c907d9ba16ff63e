"""Intervals in steps and epochs."""

from __future__ import annotations

import pytest

from sdlora.config import files
from sdlora.config.interval import is_due
from sdlora.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "kept"),
    [("100", 100), ("1 epoch", "1 epoch"), ("2epochs", "2 epochs"), ("0.5 Epochs", "0.5 epochs"), ("epoch", "1 epoch")],
)
def test_steps_and_epochs_are_read(written: str, kept: int | str) -> None:
    assert files.load(overrides=[f"previews.every={written}"]).previews.every == kept


@pytest.mark.parametrize("written", ["often", "-1", "1.5", "0 epochs"])
def test_anything_else_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match=r"previews\.every: must be a number of steps, or epochs as in '1 epoch'"):
        files.load(overrides=[f"previews.every={written}"])


def test_yes_is_no_number_of_steps() -> None:
    with pytest.raises(ConfigError, match=r"previews\.every: must be a number, not true or false"):
        files.load(overrides=["previews.every=true"])


@pytest.mark.parametrize(
    ("interval", "per_epoch", "steps"),
    [
        (3, 10, [3, 6, 9, 12]),
        (0, 10, []),
        ("1 epoch", 4, [4, 8, 12]),
        ("1 epoch", 2.75, [3, 6, 9, 11]),
        ("2 epochs", 2.75, [6, 11]),
        ("0.5 epochs", 4, [2, 4, 6, 8, 10, 12]),
        ("1 epoch", 1 / 3, list(range(1, 13))),
    ],
)
def test_an_interval_ends_with_the_first_step_past_its_multiple(
    interval: int | str, per_epoch: float, steps: list[int]
) -> None:
    assert [step for step in range(13) if is_due(interval, step, per_epoch)] == steps
