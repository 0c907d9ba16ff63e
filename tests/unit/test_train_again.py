"""`sdlora train` again, after a run of the same settings was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdlora import events
from sdlora.cli.train import _mention_unfinished as mention_unfinished
from sdlora.config import files
from sdlora.launch.runs import prepare
from tests.support.told_runs import started, step, told


@pytest.mark.parametrize("previews", [{"prompts": ["a cat"]}, {"from_captions": 2}])
def test_the_same_command_again_mentions_the_run_that_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], previews: dict[str, Any]
) -> None:
    values = {"name": "cats", "previews": previews, "outputs": {"folder": str(tmp_path)}}
    config = files.validate({**values, "images": {"folder": str(tmp_path)}}, "test")
    # A run keeps the captions that it has taken as prompts.
    taken = config.previews.model_copy(update={"prompts": config.previews.prompts or ("a cat", "a dog")})
    run = prepare(config.model_copy(update={"previews": taken}))
    told(run, started(), step(5), events.RunFinished(step=5, reason="stopped", adapter_path=None, seconds=1.0))
    mention_unfinished(config)
    said = " ".join(capsys.readouterr().out.split())
    assert f"is the same run, stopped at step 5: sdlora resume {run.folder} goes on with it" in said
    mention_unfinished(config.model_copy(update={"seed": 7}))
    assert capsys.readouterr().out == ""
