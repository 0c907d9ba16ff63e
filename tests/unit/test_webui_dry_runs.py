"""Dry runs of what the Train tab shows: begun once a draft is left alone, again when its dataset changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora.config import fields
from sdlora.config.train import TrainConfig
from sdlora.data.sets.folders import stamps
from sdlora.data.sets.listing import write_caption
from sdlora.errors import RunError
from sdlora.launch.dry_runs import DryRuns
from sdlora.launch.forecast import Forecaster
from sdlora.launch.watch import RunWatch
from sdlora.training.preflight.dry_run import DryRun, Problem
from tests.support.told_runs import DEMO
from webui.services import Services
from webui.state import PageState
from webui.train.report import Reporter
from webui.train.sheet import Sheet
from webui.workspace import Workspace


@dataclass
class FinishedJob:
    """Stands in for the process of a dry run, which loads torch for seconds."""

    answer: DryRun | None
    is_active: bool = True
    cancelled: bool = False
    error: str = "out of memory"

    def state(self) -> FinishedJob:
        return self

    def result(self) -> Any:
        if self.answer is None:
            raise RunError("no result")
        return self.answer.model_dump(mode="json")

    def cancel(self, grace_seconds: float) -> None:
        self.cancelled = True

    def delete(self) -> None:
        """Nothing to remove."""


@pytest.fixture
def dry_jobs(monkeypatch: pytest.MonkeyPatch) -> list[FinishedJob]:
    """The dry runs that were begun; what they answer is set by the test."""
    jobs: list[FinishedJob] = []

    def begin(config: TrainConfig, folder: Path) -> FinishedJob:
        jobs.append(FinishedJob(DryRun(problems=[Problem(setting=None, message=f"{config.seed} is unlucky")])))
        return jobs[-1]

    monkeypatch.setattr("sdlora.launch.dry_runs.start_dry_run", begin)
    return jobs


def test_a_draft_is_looked_into_once_it_is_left_alone(
    tmp_path: Path, dry_jobs: list[FinishedJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    dry_runs, other = DryRuns(tmp_path), DEMO.model_copy(update={"seed": 13})
    dry_runs.ask(DEMO)
    assert (dry_runs.find(DEMO).stage, dry_jobs) == ("waiting", [])
    monkeypatch.setattr("sdlora.launch.dry_runs.QUIET_SECONDS", 0.0)
    assert dry_runs.find(DEMO).stage == "running"
    dry_runs.ask(other)
    assert dry_runs.find(other).stage == "running"
    assert len(dry_jobs) == 2
    dry_jobs[1].is_active = False
    found = dry_runs.find(other.model_copy(update={"name": "renamed"}))
    assert found.found is not None
    assert found.found.problems[0].message == "13 is unlucky"
    assert dry_runs.find(None).stage == "idle"


def test_what_the_dry_run_finds_wrong_keeps_start_closed(
    tmp_path: Path, dry_jobs: list[FinishedJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdlora.launch.dry_runs.QUIET_SECONDS", 0.0)
    workspace = Workspace(tmp_path)
    workspace.prepare()
    among = fields.fields(TrainConfig, ["outputs.folder"])
    reporter = Reporter(
        Services(workspace, PageState(workspace.state)), workspace.runs, among, lambda name: (name, "section")
    )
    shown = fields.show_all(DEMO, among)
    before = reporter.report(Sheet(shown, "demo.yaml", "demo.yaml"))
    assert before.can_start
    assert "checking" in before.status
    dry_jobs[0].answer, dry_jobs[0].is_active = None, False
    after = reporter.report(Sheet(shown, "demo.yaml", "demo.yaml"))
    assert not after.can_start
    assert not after.can_enqueue
    assert "the check of these settings failed: out of memory" in after.problems
    assert "1 problem" in after.status


def test_a_repaired_dataset_is_looked_into_again(
    tmp_path: Path, dry_jobs: list[FinishedJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdlora.launch.dry_runs.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("sdlora.launch.forecast._FRESH_SECONDS", 0.0)
    images = tmp_path / "datasets" / "cats"
    images.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(images / "a.png")
    (images / "a.txt").write_text("a cat")
    before = stamps(tmp_path / "datasets")
    draft = DEMO.model_copy(update={"images": DEMO.images.model_copy(update={"folder": images}), "seed": 13})
    forecaster = Forecaster(RunWatch(tmp_path / "runs"), tmp_path / "jobs")
    forecaster.forecast(draft)
    dry_jobs[0].is_active = False
    assert forecaster.forecast(draft).problems == ("13 is unlucky",)
    write_caption(images / "a.png", "a black cat")
    assert stamps(tmp_path / "datasets") != before  # which an open Train tab asks for
    assert forecaster.forecast(draft).problems == ()
    assert len(dry_jobs) == 2
