"""Training steps and sampling on a card that isn't there: nothing is on the wrong device, and nobody waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.pretended_card import SAMPLING, TRAINING

A_STEP = {"trainer._add_gradients": 1, "precision.unscale_and_clip": 1}
"""The loss and the gradient's norm, when all of a step's work is under way: whether it may change the weights."""
MORE = {
    "objective": {"attach.limit_norms": 1},
    "fp16": {"precision.scale": 1, "precision.step": 1},
    # Of each image that is encoded anew: whether the VAE stayed finite in half precision.
    "live": {"vae._finite": 2},
}
A_PICTURE = {"batch_generator.<listcomp>": 2}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.pretended_card"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", [*TRAINING, *SAMPLING])
def test_everything_is_on_the_card_and_is_asked_for_no_more_than_it_must(case: str, found: dict[str, Any]) -> None:
    assert found[case]["error"] is None, found[case]["error"]
    wanted = A_PICTURE if case in SAMPLING else A_STEP | MORE.get(case, {})
    assert found[case]["waits"] == wanted
