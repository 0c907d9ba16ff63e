"""Going on with a run under other settings, from the page: what is written into the run, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdlora.errors import ConfigError
from sdlora.events import RunFinished
from sdlora.launch.watch import RunWatch
from sdlora.runs import changes
from tests.support.told_runs import made, started, step, told
from webui.runs.going_on import GoingOn


@pytest.fixture
def going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The section's handler over a finished run of two steps; `resumed` holds what it started."""
    run = made(tmp_path / "runs", "fox")
    over = RunFinished(step=2, reason="completed", adapter_path=None, seconds=1.0)
    told(run, started(2), step(1), step(2), over)
    section: Any = object.__new__(GoingOn)
    section.watch, section.run, section.resumed = RunWatch(tmp_path / "runs"), run, []
    monkeypatch.setattr(section.watch, "resume", section.resumed.append)
    return section


def test_changes_are_written_into_the_run_and_it_goes_on(going_on: Any) -> None:
    assert going_on._go("fox", "optimization.steps=600\n\n optimization.learning_rate=5e-4 ", False) == ("", False, "")
    assert going_on.resumed == [going_on.run]
    config = going_on.run.config().optimization
    assert (config.steps, config.learning_rate) == (600, 5e-4)
    recorded = [one.name for one in changes.history(going_on.run.files)[0].changes]
    assert sorted(recorded) == ["optimization.learning_rate", "optimization.steps"]


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("fox", "", "write at least one"),
        ("fox", "optimization.stesp=600", "did you mean"),
        ("fox", "adapter.rank=4\noptimization.steps=600", "adapter.rank"),
        ("fox", "optimization.steps=2\nseed=5", "has done 2 steps: ask for more, such as optimization.steps=4"),
        ("owl", "optimization.steps=600", "not there any more"),
    ],
)
def test_what_is_refused_changes_nothing(going_on: Any, name: str, lines: str, words: str) -> None:
    before = going_on.run.files.config.read_bytes()
    with pytest.raises(ConfigError, match=words):
        going_on._go(name, lines, False)
    assert going_on.run.files.config.read_bytes() == before
    assert (going_on.resumed, changes.history(going_on.run.files)) == ([], [])


def test_images_as_they_are_now_can_be_accepted_without_another_setting(going_on: Any) -> None:
    files = going_on.run.files
    told(going_on.run, started(2))  # it is to go on
    assert going_on._go("fox", "", True) == ("", False, "")
    assert going_on.resumed == [going_on.run]
    assert files.takes_changes_accepted()
    assert not files.takes_changes_accepted()
