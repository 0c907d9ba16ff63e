"""The evaluation of a run on the page: what it says in each state, what starts one, what promotes a checkpoint."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio")

from sdlora.adapters.files.container import content_hash
from sdlora.errors import ConfigError, RunError
from sdlora.evaluation.lock import locked
from sdlora.evaluation.promotion import promote
from sdlora.evaluation.report import read, report_file
from sdlora.events import Progress
from sdlora.launch import evaluations
from sdlora.launch.evaluations import Evaluations, result_label
from sdlora.launch.jobs import JobHandle
from sdlora.launch.runs import RunHandle
from sdlora.launch.watch import RunWatch
from sdlora.processes import ProcessRecord
from tests.support.evaluated_run import evaluate, running_job, trained_run
from tests.support.told_runs import made, started, step, told
from webui.runs.parts import Choice, RunParts
from webui.runs.trade_off import trade_off


@pytest.fixture
def run(tmp_path: Path) -> RunHandle:
    """A finished run with two checkpoints."""
    return trained_run(tmp_path / "runs")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """An image of a dataset of the page."""
    path = tmp_path / "datasets" / "pets" / "a <cat>.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), "teal").save(path)
    return path


def shown(tmp_path: Path, name: str = "cats") -> tuple[str, str, Any]:
    """How the evaluation stands, what was found, and what can be pressed."""
    jobs = Evaluations(tmp_path / "jobs")
    made_parts = RunParts(RunWatch(tmp_path / "runs"), jobs, tmp_path / "thumbnails", tmp_path / "datasets")
    parts = made_parts.parts(Choice(name))
    return str(parts["evaluate"].make()), str(parts["evaluation"].make()), parts["buttons"].make()


def test_each_state_of_an_evaluation_is_said(run: RunHandle, picture: Path, tmp_path: Path) -> None:
    words, found, presses = shown(tmp_path)
    assert ("Not evaluated yet" in words, found, "evaluate" in presses) == (True, "", True)
    running = made(tmp_path / "runs", "waits")
    assert "once it has trained" in shown(tmp_path, "waits")[0]
    told(running, started(), step(1))  # its process is gone: it has crashed before it wrote a file
    words, _, presses = shown(tmp_path, "waits")
    assert ("There is no checkpoint to evaluate" in words, "evaluate" in presses) == (True, False)
    evaluate(run, picture)
    words, found, presses = shown(tmp_path)
    assert "in 1 min 1 s: 2 prompts with 1 seed, compared by latents" in words
    for text in (
        "Take step 10",
        "likeness is the best",
        "from step 20 on one image is a copy",
        "Use it at weight 0.8: likeness within 1.0% of the best.",
        "near copy of a &lt;cat&gt;",
    ):
        assert text in found
    assert 'data-of="pets" data-image="a &lt;cat&gt;.png"' in found
    assert "held-out loss" not in found
    assert found.count('data-act="promote"') == 1  # step 20 is the result
    assert "evaluate" in presses
    picture.unlink()
    assert "data-image" not in shown(tmp_path)[1]
    run.files.checkpoint(15).mkdir()
    (run.files.checkpoint(15) / "cats-step_000015.safetensors").write_bytes(
        next(run.files.checkpoint(10).glob("*.safetensors")).read_bytes()
    )
    assert "Not among them: step 15." in shown(tmp_path)[0]
    report_file(run.folder).write_text("torn")
    words, found, presses = shown(tmp_path)
    assert ("can&#39;t be read" in words, found, "evaluate" in presses) == (True, "", True)


def test_a_running_evaluation_is_followed_and_nothing_else_is_begun(
    run: RunHandle, picture: Path, tmp_path: Path
) -> None:
    evaluate(run, picture)
    running_job(tmp_path / "jobs", run, os.getpid())
    words, found, presses = shown(tmp_path)
    assert "Generating images: 3 of 8" in words
    assert "Take step 10" in found  # the former one stays in view
    assert ("cancel_evaluation" in presses, "evaluate" in presses) == (True, False)
    jobs = Evaluations(tmp_path / "jobs")
    with pytest.raises(ConfigError, match="it is being evaluated: wait for that, or cancel it"):
        jobs.start(run)
    with pytest.raises(RunError, match="promote a checkpoint once that is done, or cancel it"):
        jobs.promote(run, "step 10")
    job = next((tmp_path / "jobs").iterdir())
    (job / "process.json").unlink()
    words, _, presses = shown(tmp_path)
    assert "Evaluation crashed: its process is gone without a word" in words
    assert "evaluate" in presses
    found_again = read(run.folder)  # the command line has evaluated it since
    assert found_again is not None
    replace(found_again, finished_at=time.time() + 60).write()
    assert "crashed" not in shown(tmp_path)[0]
    later = time.time() + 60
    os.utime(run.files.config, (later, later))  # another run of that name
    assert jobs.state(run) is None


def test_settings_are_checked_before_anything_is_started(
    run: RunHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def start_job(arguments: list[str], jobs: Path, after: list[JobHandle]) -> JobHandle:
        asked.append(arguments)
        return JobHandle(jobs / "none")

    monkeypatch.setattr(evaluations, "start_job", start_job)
    jobs = Evaluations(tmp_path / "jobs")
    with pytest.raises(ConfigError) as refused:
        jobs.start(run, ["sedes=3", "steps=0"])
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["steps", "sedes"]
    with pytest.raises(ConfigError, match="features: is empty"):
        jobs.start(run, [], "")
    assert not asked
    jobs.start(run, ["num_seeds=2", "prompts.num_new=1"], "latents")
    assert asked == [
        ["evaluate", str(run.folder), "--set", "num_seeds=2", "--set", "prompts.num_new=1", "--features=latents"]
    ]


def test_a_second_evaluation_waits_for_the_first(
    run: RunHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_job(tmp_path / "jobs", run, os.getpid())
    waited: list[JobHandle] = []

    def start_job(arguments: list[str], jobs: Path, after: list[JobHandle]) -> JobHandle:
        waited.extend(after)
        other = jobs / "20261129-120001-evaluate"
        other.mkdir()
        ProcessRecord.of(os.getpid()).write(other / "process.json")
        told = Progress(stage="waiting for its turn", done=0, total=0)
        (other / "events.jsonl").write_text(told.model_dump_json() + "\n", encoding="utf-8")
        about = {"arguments": arguments, "created_at": time.time() + 1}
        (other / "job.json").write_text(json.dumps(about), encoding="utf-8")
        return JobHandle(other)

    monkeypatch.setattr(evaluations, "start_job", start_job)
    jobs, dogs = Evaluations(tmp_path / "jobs"), trained_run(tmp_path / "runs", "dogs")
    jobs.start(dogs)
    assert [job.name for job in waited] == ["20261129-120000-evaluate"]
    assert (jobs.ahead(dogs), jobs.ahead(run)) == (["cats"], [])
    words, _, presses = shown(tmp_path, "dogs")
    assert "Waiting for its turn" in words
    assert "cats is evaluated first." in words
    assert "cancel_evaluation" in presses
    (tmp_path / "jobs" / "20261129-120000-evaluate" / "process.json").unlink()
    assert "evaluated first" not in shown(tmp_path, "dogs")[0]


def test_a_run_in_the_queue_is_not_evaluated(tmp_path: Path) -> None:
    from sdlora.launch import queue

    waiting = made(tmp_path / "runs", "waits")
    queue.hold(tmp_path / "runs", True)
    queue.enqueue(waiting)
    with pytest.raises(ConfigError, match="it is queued: evaluate it when it has stopped or is finished"):
        Evaluations(tmp_path / "jobs").start(waiting)


def test_names_in_the_chart_hide_no_others_and_no_points_are_lost(run: RunHandle, picture: Path) -> None:
    found = evaluate(run, picture)
    first = found.checkpoints[0]
    crowd = [replace(first, label=f"step {n}", step=n, likeness=0.7 + n / 1e6) for n in (10, 11, 12, 13)]
    drawn = trade_off(replace(found, checkpoints=tuple(crowd)), {})
    assert drawn.count('class="curve-0 dot"') == 4
    assert re.findall(r'class="name"[^>]*>(\w+)<', drawn) == ["base", "10", "11"]
    unmeasured = [replace(one, adherence_of_base=None) for one in crowd]
    assert "adherence was not measured" in trade_off(replace(found, checkpoints=tuple(unmeasured)), {})


def test_two_that_promote_at_once_are_refused_and_what_a_killed_one_left_is_gone(run: RunHandle, picture: Path) -> None:
    evaluate(run, picture)
    left = run.folder / ".promoting"
    left.mkdir()
    with locked(run.files):
        left.mkdir()  # by the one that is at it
        with pytest.raises(RunError, match="is being evaluated already by another process"):
            promote(run.folder, "step 10")
        assert left.is_dir()
    promote(run.folder, "step 10")
    assert not left.exists()


def test_a_checkpoint_is_promoted_by_its_name_and_back(run: RunHandle, picture: Path, tmp_path: Path) -> None:
    found = evaluate(run, picture)
    jobs, result = Evaluations(tmp_path / "jobs"), run.files.adapter("cats")
    assert result_label(run, found) == "step 20"
    said = jobs.promote(run, "step 10")
    done = "cats.safetensors is now cats-step_000010.safetensors; what it was before lies in former/step_000020"
    assert said == f"{done}; there is no cats.json to write the weight 0.8 into"
    assert content_hash(result) == found.checkpoints[0].content
    _, shown_now, _ = shown(tmp_path)
    assert said in shown_now
    assert "It is the run's result" in shown_now
    jobs.promote(run, "step 20")
    assert result_label(run, found) == "step 20"


def test_a_setting_that_stands_in_its_field_and_below_with_another_value_is_refused() -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    from webui.runs.evaluating import EvaluateView

    begun: list[Any] = []
    view: Any = object.__new__(EvaluateView)
    view.evaluations = SimpleNamespace(start=lambda *asked: begun.append(asked))
    with pytest.raises(ConfigError) as refused:
        view._begin("fox", "auto", 4, "num_seeds=8\nfeatures = latents")
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["features", "num_seeds"]
    assert "4 in its field, 8 under More settings" in refused.value.problems[1]
    view._begin("fox", "latents", 8, "num_seeds=8\nfeatures=latents\nsteps=20")
    view._begin("fox", "", None, "num_seeds=8")
    view._begin("fox", "auto", 4, "")
    assert begun == [
        ("fox", ["num_seeds=8", "features=latents", "steps=20"], "latents"),
        ("fox", ["num_seeds=8"], "auto"),
        ("fox", ["num_seeds=4"], "auto"),
    ]
