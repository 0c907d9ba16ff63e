"""Other commands in the background: how they stand, what they say, what comes out of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.errors import RunError
from sdlora.events import Progress
from sdlora.launch import jobs
from sdlora.launch.jobs import JobHandle, JobState, list_jobs, progress, start_dry_run, start_job
from sdlora.processes import ProcessRecord, start_mark
from sdlora.sinks.jsonl import JsonlSink
from sdlora.training.preflight.dry_run import DryRun
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow  # starts processes

SLEEPER = (sys.executable, "-c", "import time; print('half', flush=True); time.sleep(600)")


def over(job: JobHandle) -> JobState:
    """How a job ended."""
    wait_for(lambda: not job.state().is_active, f"the end of {job.command()}", 60)
    return job.state()


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobHandle:
    """A job that has begun and will not end."""
    monkeypatch.setattr(jobs, "SDLORA", SLEEPER)
    job = start_job(["dataset", "caption", "pictures"], tmp_path / "jobs")
    wait_for(job.output, "what it prints", 30)
    return job


def test_a_job_runs_a_command_to_its_end(tmp_path: Path) -> None:
    job = start_job(["presets"], tmp_path / "jobs")
    assert job.state().status == "running"
    state = over(job)
    assert (state.status, state.exit_code, state.error) == ("finished", 0, None)
    assert "demo.yaml" in job.output()
    assert job.command() == "sdlora presets"
    assert [each.name for each in list_jobs(tmp_path / "jobs")] == [job.name]
    with pytest.raises(RunError, match="printed no JSON"):
        job.result()
    job.delete()
    assert list_jobs(tmp_path / "jobs") == []


def test_a_job_waits_for_its_turn_and_can_be_cancelled_meanwhile(
    sleeper: JobHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    first = start_job(["presets"], tmp_path / "jobs", [sleeper])
    second = start_job(["presets"], tmp_path / "jobs", [sleeper, first])
    for job in (first, second):
        wait_for(lambda job=job: job.state().stage == "waiting for its turn", "that it waits", 60)
    assert progress("Evaluation", first.state()).is_active
    assert second.cancel(grace_seconds=30).status == "cancelled"
    assert first.state().status == "running"
    sleeper.cancel()
    assert over(first).status == "finished"
    assert "demo.yaml" in first.output()
    assert second.output() == ""


def test_a_dry_run_tells_every_problem_with_its_setting(tmp_path: Path) -> None:
    config = files.load(overrides=["optimization.optimizer=torch.optim.Nothing"])
    job = start_dry_run(config, tmp_path / "jobs")
    assert job.command().endswith("--dry-run --json")
    (tmp_path / "jobs" / job.name / "config.yaml").write_text("adapter: {rank: many}\nimages: {resolution: 100}\n")
    assert over(job).status == "finished"
    found = DryRun.model_validate(job.result())
    assert [problem.setting for problem in found.problems] == ["images.resolution", "adapter.rank"]
    assert found.figures is None


def test_a_failed_job_tells_its_error(tmp_path: Path) -> None:
    job = start_job(["train", "--preset", "nosuch"], tmp_path / "jobs")
    state = over(job)
    assert (state.status, state.exit_code) == ("failed", 2)
    assert state.error is not None
    assert "no such file, and no preset of that name" in state.error
    with pytest.raises(RunError, match="has no result: it is failed"):
        job.result()


def test_a_wrong_command_line_is_told_in_its_own_words(tmp_path: Path) -> None:
    state = over(start_job(["mix", "--nosuch"], tmp_path / "jobs"))
    assert state.status == "failed"
    assert state.error is not None
    assert "No such option" in state.error


def test_a_job_that_nobody_could_write_down_never_begins(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from sdlora.launch import jobs\n"
        "def die(number): print(number, flush=True); os._exit(9)\n"
        "jobs.ProcessRecord.of = die\n"
        f"jobs.start_job(['explain', 'adapter.rank'], Path({str(tmp_path / 'jobs')!r}))\n"
    )
    server = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    wait_for(lambda: start_mark(int(server.stdout)) is None, "the end of the command", 60)
    (folder,) = (tmp_path / "jobs").iterdir()
    assert (folder / "output.txt").read_text() == (folder / "log.txt").read_text() == ""
    assert list_jobs(tmp_path / "jobs") == []


def test_a_cancelled_job_is_gone_and_says_so(sleeper: JobHandle) -> None:
    with pytest.raises(RunError, match="is running: cancel it before you delete it"):
        sleeper.delete()
    assert sleeper.cancel().status == "cancelled"
    assert sleeper.output() == "half\n"


def test_a_killed_job_has_crashed(sleeper: JobHandle) -> None:
    process_id = sleeper.state().process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGKILL)
    state = over(sleeper)
    assert state.status == "crashed"
    assert "gone without a word" in str(state.error)


def test_progress_and_remaining_time_come_from_the_jobs_events(sleeper: JobHandle) -> None:
    sink = JsonlSink(sleeper.folder / "events.jsonl")
    for done in (0, 1):
        sink.emit(Progress(time=100.0 + done, stage="captioning", done=done, total=20))
    state = sleeper.state()
    assert (state.stage, state.done, state.total, state.eta_seconds) == ("captioning", 1, 20, None)
    sink.emit(Progress(time=104.0, stage="captioning", done=4, total=20))
    sink.close()
    assert sleeper.state().eta_seconds == pytest.approx(16.0)
    sleeper.cancel()


def test_a_command_writes_its_progress_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdlora.cli.progress import event_stream, progress

    monkeypatch.setenv("SDLORA_EVENTS", str(tmp_path / "events.jsonl"))
    with progress("mixing") as on_progress:
        for done in range(1, 4):
            on_progress(done, 3)
    with event_stream() as events:
        events.progress("captioning", 1, 1)
    job = JobHandle(tmp_path)
    ProcessRecord.of(os.getpid()).write(tmp_path / "process.json")
    state = job.state()
    assert (state.stage, state.done, state.total) == ("captioning", 1, 1)
    assert '"mixing","done":3,"total":3' in (tmp_path / "events.jsonl").read_text()
