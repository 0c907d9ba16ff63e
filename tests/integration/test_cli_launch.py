"""The commands around runs in the background, and the dry run for machines."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdlora.cli import app
from sdlora.config import files
from sdlora.errors import ConfigError, RunError
from sdlora.launch import queue, runs
from sdlora.launch.runs import list_runs, prepare
from sdlora.training.loop import run as training
from sdlora.training.preflight.dry_run import DryRun

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")

SOME_IMAGES = "images.folder=builtin:blueprint"


@pytest.fixture(autouse=True)
def sleeping_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs in the background only sleep."""
    monkeypatch.setattr(runs, "SDLORA", SLEEPER)
    monkeypatch.chdir(tmp_path)
    yield
    for handle in list_runs(tmp_path / "runs"):
        process_id = handle.state().process_id
        if process_id not in (None, os.getpid()):
            os.kill(process_id, signal.SIGKILL)


def call(*arguments: str) -> str:
    """What a command prints; its error is raised."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
    return result.output


def test_a_dry_run_for_machines_has_all_figures(shallow_sd1: Path, tiny_images: Path, tmp_path: Path) -> None:
    settings = [f"base_model.model={shallow_sd1}", f"images.folder={tiny_images}", "images.resolution=64"]
    found = DryRun.model_validate_json(call("train", "--dry-run", "--json", *(f"--set={each}" for each in settings)))
    assert found.problems == []
    assert found.figures is not None
    assert (found.figures.total_steps, found.figures.images, found.figures.samples) == (100, 10, 10)
    assert sum(bucket.samples for bucket in found.figures.buckets) == 10
    assert found.figures.trainable_parameters > 0
    assert "10 of 10 files, 0 held out" in {line.text for line in found.lines}
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_for_machines_lists_problems_and_exits_with_1(shallow_sd1: Path) -> None:
    settings = [f"--set=base_model.model={shallow_sd1}", "--set=optimization.optimizer=torch.optim.Nothing"]
    result = CliRunner().invoke(app, ["train", "--dry-run", "--json", *settings])
    assert result.exit_code == 1
    problems = DryRun.model_validate_json(result.output).problems
    assert {problem.setting for problem in problems} == {"optimization.optimizer", "images.folder"}
    with pytest.raises(ConfigError, match="--json goes with --dry-run only"):
        call("train", "--json")


def test_runs_are_listed_with_their_state() -> None:
    assert "no runs in runs" in call("runs")
    prepare(files.load(overrides=["name=fox"]))
    assert "fox" in call("runs")
    assert "stopped" in call("runs", "runs")
    (listed,) = json.loads(call("runs", "--json"))
    assert (listed["status"], listed["step"]) == ("stopped", 0)


def test_the_queue_is_filled_shown_and_emptied() -> None:
    assert "nothing waits" in call("queue", "list")
    assert "fox: starting" in call("queue", "add", "--set", "name=fox", "--set", SOME_IMAGES)
    assert "hare: queued" in call("queue", "add", "--set", "name=hare", "--set", SOME_IMAGES)
    shown = call("queue", "list")
    assert shown.index("fox") < shown.index("hare")
    call("queue", "hold")
    assert "on hold" in call("queue", "list")
    call("queue", "remove", "runs/hare")
    assert "nothing waits" in call("queue", "list")
    assert "hare: queued" in call("queue", "add", "runs/hare")
    with pytest.raises(ConfigError, match="a RUN has its own settings"):
        call("queue", "add", "runs/hare", "--set", "seed=1")
    runs.find(Path("runs/fox")).kill(grace_seconds=0.1)
    assert "hare: starting" in call("queue", "start")


def test_asking_a_run_that_does_not_run_is_refused() -> None:
    prepare(files.load(overrides=["name=fox"]))
    with pytest.raises(RunError, match="fox isn't running"):
        call("stop", "runs/fox")


def test_a_run_that_cannot_begin_has_failed_and_the_next_one_starts() -> None:
    bad = prepare(files.load(overrides=["name=bad", "images.folder=nowhere"]))
    waiting = prepare(files.load(overrides=["name=waiting"]))
    queue.enqueue(waiting)
    with pytest.raises(Exception, match="nowhere"):
        call("resume", "runs/bad", "--quiet")
    state = bad.state()
    assert (state.status, state.step) == ("failed", 0)
    assert "nowhere" in str(state.last_error)
    assert waiting.state().status == "starting"


def test_ctrl_c_starts_no_other_run(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(files.load(overrides=["name=first"]))
    waiting = prepare(files.load(overrides=["name=waiting"]))
    queue.enqueue(waiting)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "resume", interrupted)
    CliRunner().invoke(app, ["resume", "runs/first"])
    assert waiting.state().status == "queued"


def test_a_folder_in_use_is_not_trained_by_a_second_process() -> None:
    first = prepare(files.load(overrides=["name=first"]))
    with training.locked(first.files):
        assert first.state().status == "starting"
        with pytest.raises(RunError, match=r"is being trained already by process \d+ on .*`sdlora stop"):
            training.resume(first.folder)
    assert first.files.events.exists() is False
