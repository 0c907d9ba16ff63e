"""Real trainings in the background: they outlive who started them and tell the truth when killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import RunError
from sdlora.events import CheckpointSaved, PreviewReady, RunFinished, RunStarted, StepFinished
from sdlora.launch import queue
from sdlora.launch.runs import RunHandle, find, list_runs, prepare
from sdlora.runs.state import RunState
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

TOTAL_STEPS = 24


def tiny(name: str, images: Path, runs_folder: Path) -> TrainConfig:
    return files.load(
        overrides=[
            f"name={name}",
            f"images.folder={images}",
            "images.resolution=64",
            "images.buckets=false",
            "adapter.rank=2",
            "adapter.layers=attention",
            f"optimization.steps={TOTAL_STEPS}",
            "optimization.precision=fp32",
            "optimization.threads=1",
            "previews.prompts=[a cat]",
            "previews.steps=1",
            "previews.width_px=64",
            "previews.height_px=64",
            "outputs.self_test=false",
            f"outputs.folder={runs_folder}",
        ]
    )


@dataclass(frozen=True)
class Killed:
    """A run whose trainer was killed, and what was seen on the way."""

    run: RunHandle
    at_once: RunState
    """Right after it was asked for."""
    refused: str
    """What a second start was told."""
    after_interrupt: RunState
    """When Ctrl-C had ended the process that started it."""
    crashed: RunState
    checkpoint_step: int


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("launched") / "runs"
    yield folder
    for run in list_runs(folder):
        run.kill(grace_seconds=0.1)


@pytest.fixture(scope="module")
def killed(runs_folder: Path, tiny_images: Path) -> Killed:
    """Started by another process, which Ctrl-C then ends; asked to save; killed."""
    run = prepare(tiny("first", tiny_images, runs_folder))
    code = (
        "import signal, time; from pathlib import Path; from sdlora.launch.runs import resume\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        f"resume(Path({str(run.folder)!r})); print('started', flush=True); time.sleep(600)\n"
    )
    page = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert page.stdout is not None
    page.stdout.readline()
    at_once = run.state()
    with pytest.raises(RunError) as refused:
        run.resume()
    os.killpg(page.pid, signal.SIGINT)
    page.communicate(timeout=300)
    after_interrupt = run.state()
    wait_for(lambda: run.state().step >= 2, "the first steps")
    run.save_now()
    saved = wait_for(lambda: [each for each in run.events()[0] if isinstance(each, CheckpointSaved)], "a checkpoint")
    wait_for(lambda: run.state().step > saved[0].step, "a step after the checkpoint")
    process_id = run.state().process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGKILL)
    wait_for(lambda: not run.state().is_active, "the end")
    return Killed(run, at_once, str(refused.value), after_interrupt, run.state(), saved[0].step)


@pytest.fixture(scope="module")
def finished(killed: Killed, tiny_images: Path, runs_folder: Path) -> tuple[RunHandle, RunHandle]:
    """The killed run, gone on with from the command line, and the one that waited for its end."""
    second = prepare(tiny("second", tiny_images, runs_folder))
    queue.enqueue(second)
    terminal = subprocess.Popen(
        [sys.executable, "-m", "sdlora", "resume", str(killed.run.folder)], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: killed.run.state().status == "running", "the run to go on")
    assert queue.advance(runs_folder) == [], "the accelerator is busy with the run of the command line"
    killed.run.preview_now()
    _, shown = terminal.communicate(timeout=300)
    assert terminal.returncode == 0, shown
    return killed.run, second


def test_a_run_shows_at_once_and_is_started_once(killed: Killed) -> None:
    assert killed.at_once.status == "starting"
    assert killed.refused == "first is starting already: there is nothing to start."


def test_a_run_outlives_the_process_that_started_it(killed: Killed) -> None:
    assert killed.after_interrupt.is_active
    assert killed.after_interrupt.process_id == killed.at_once.process_id


def test_a_killed_run_has_crashed_and_can_go_on(killed: Killed) -> None:
    state = killed.crashed
    assert (state.status, state.can_start, state.total_steps) == ("crashed", True, TOTAL_STEPS)
    assert state.last_error is not None
    assert state.last_error.startswith("its process is gone without a word")
    assert "the log ends with:" in state.last_error
    assert killed.checkpoint_step in [file.step for file in killed.run.adapter_files()]


def test_a_crashed_run_is_finished_on_the_command_line(killed: Killed, finished: tuple[RunHandle, RunHandle]) -> None:
    run, _ = finished
    state = run.state()
    assert (state.status, state.step) == ("finished", TOTAL_STEPS)
    events = run.events()[0]
    started = [event for event in events if isinstance(event, RunStarted)]
    assert [event.first_step for event in started] == [0, killed.checkpoint_step]
    again = events[events.index(started[1]) :]
    steps = [event.step for event in again if isinstance(event, StepFinished)]
    assert steps == list(range(killed.checkpoint_step + 1, TOTAL_STEPS + 1))
    assert run.files.adapter("first").is_file()
    assert len([event for event in again if isinstance(event, PreviewReady)]) == 2, "one asked for, one at the end"
    assert {image.prompt for image in run.previews()} == {"a cat"}
    with pytest.raises(RunError, match="first is complete"):
        run.resume()


def test_the_next_run_begins_by_itself_and_stops_when_asked_before_its_first_step(
    finished: tuple[RunHandle, RunHandle], runs_folder: Path
) -> None:
    _, second = finished
    assert second.state().status == "starting"
    assert queue.read(runs_folder).waiting == ()
    second.stop()
    assert second.state().status == "stopping"
    wait_for(lambda: not second.state().is_active, "the end")
    state = second.state()
    assert (state.status, state.step, state.can_start) == ("stopped", 0, True), state
    assert second.adapter_files() == []
    assert [run.name for run in list_runs(runs_folder)] == ["second", "first"]


def test_both_ways_of_starting_leave_the_same_files(finished: tuple[RunHandle, RunHandle]) -> None:
    run, _ = finished
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "environment.json", "events.jsonl", "log.txt", "process.json", "first.safetensors"} <= names
    log = run.log_tail(1000)
    assert log.count("loading builtin:emoji") == 2
    assert f"completed at step {TOTAL_STEPS}" in log
    ending = [event for event in run.events()[0] if isinstance(event, RunFinished)]
    assert [event.reason for event in ending] == ["completed"]
    assert find(run.folder) == run
