"""Runs as they are found on disk: their state, their logs, and what may be done with them in which state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.errors import ConfigError, RunError
from sdlora.events import (
    Event,
    Progress,
    RunFailed,
    RunFinished,
    RunStarted,
    StepFinished,
    Stopping,
    Validated,
    parse_event,
)
from sdlora.launch import runs
from sdlora.launch.runs import RunHandle, clone, find, list_runs, prepare, resume
from sdlora.processes import Heartbeat, ProcessRecord, start_mark
from sdlora.runs.event_log import last_words, text_tail
from sdlora.sinks.jsonl import JsonlSink
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow  # starts processes

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is alive and belongs to nobody's run yet."""
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def sleeping_trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs start a process that only sleeps."""
    monkeypatch.setattr(runs, "SDLORA", SLEEPER)
    started: list[int] = []
    real = runs.spawn

    def spawn(*arguments: object, **options: object) -> int:
        started.append(real(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(runs, "spawn", spawn)
    yield
    for process_id in started:
        if start_mark(process_id):
            os.kill(process_id, signal.SIGKILL)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunHandle]:
    """Makes runs in one folder."""

    def make(name: str = "fox") -> RunHandle:
        return prepare(files.load(overrides=[f"name={name}"]), tmp_path / "runs")

    return make


def write(handle: RunHandle, *events: Event) -> None:
    sink = JsonlSink(handle.files.events)
    for event in events:
        sink.emit(event)
    sink.close()


def own(handle: RunHandle, process_id: int) -> ProcessRecord:
    """Say that a process trains this run."""
    record = ProcessRecord.of(process_id, events=handle.files.events, log=handle.files.log)
    record.write(handle.files.process)
    return record


def began(first_step: int = 0, total: int = 100, at: float = 0.0) -> RunStarted:
    return RunStarted(
        time=at,
        name="fox",
        folder="fox",
        process_id=1,
        total_steps=total,
        first_step=first_step,
        trainable_parameters=1,
        total_parameters=2,
    )


def step(number: int, at: float = 0.0, seconds: float = 0.5) -> StepFinished:
    return StepFinished(
        time=at,
        step=number,
        epoch=0,
        loss=0.25,
        learning_rates={"unet": 1e-4},
        gradient_norm=1.0,
        seconds=seconds,
        memory_gib=1.5,
    )


COMPLETED = RunFinished(step=100, reason="completed", adapter_path="fox.safetensors", seconds=1.0)
STOPPED = RunFinished(step=7, reason="stopped", adapter_path="step_7.safetensors", seconds=1.0)
FAILED = RunFailed(step=3, message="the loss is nan")


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "starting"),
        ([Progress(stage="encoding images", done=1, total=4)], "starting"),
        ([began()], "running"),
        ([began(), step(1)], "running"),
        ([began(), step(1), Stopping(step=1)], "stopping"),
        ([began(), step(7), Stopping(step=7), STOPPED], "stopped"),
        ([began(), step(100), COMPLETED], "finished"),
        ([began(), step(3), FAILED], "failed"),
    ],
)
def test_state_of_a_living_process_follows_its_events(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes], events: list[Event], status: str
) -> None:
    run = new_run()
    own(run, sleeper.pid)
    write(run, *events)
    assert run.state().status == status


def test_a_process_that_is_gone_without_a_last_event_has_crashed(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    own(run, sleeper.pid)
    write(run, began(), step(1), step(2))
    run.files.log.write_text("training 2/100\n")
    assert run.state().status == "running"
    sleeper.kill()
    wait_for(lambda: run.state().status != "running", "the process to be gone")
    state = run.state()  # nobody has waited for it yet: a zombie is not alive
    assert sleeper.returncode is None
    assert (state.status, state.step, state.total_steps, state.can_start) == ("crashed", 2, 100, True)
    assert state.last_error is not None
    assert "gone without a word" in state.last_error
    assert state.last_error.endswith("the log ends with: training 2/100")


def test_another_process_with_the_same_id_is_not_the_trainer(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    record = own(run, sleeper.pid)
    write(run, began(), step(1))
    replace(record, started="12345").write(run.files.process)
    assert run.state().status == "crashed"
    run.kill(grace_seconds=0.1)
    assert sleeper.poll() is None, "a process that isn't the run's must not be killed"


def test_a_process_elsewhere_lives_as_long_as_it_touches_its_record(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    record = own(run, sleeper.pid)
    write(run, began(), step(1))
    replace(record, place="another-host", process_id=1).write(run.files.process)
    assert run.state().status == "running"
    with pytest.raises(RunError, match="process 1 on another-host can't be ended from here"):
        run.kill(grace_seconds=0.1)
    os.utime(run.files.process, (time.time() - 300, time.time() - 300))
    assert run.state().status == "crashed"


def test_the_heartbeat_touches_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdlora.processes.BEAT_SECONDS", 0.01)
    record = tmp_path / "process.json"
    record.touch()
    os.utime(record, (0, 0))
    with Heartbeat(record):
        wait_for(lambda: record.stat().st_mtime > 0, "a heartbeat", 10)


def test_events_of_an_earlier_process_do_not_end_the_run(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    write(run, began(), step(7), STOPPED)
    assert run.state().status == "stopped"
    own(run, sleeper.pid)
    state = run.state()
    assert (state.status, state.step, state.total_steps) == ("starting", 7, 100)
    write(run, began(first_step=5))
    state = run.state()
    assert (state.status, state.step) == ("running", 5)


def test_a_run_that_never_began_is_stopped_at_step_0(new_run: Callable[..., RunHandle]) -> None:
    state = new_run().state()
    assert (state.status, state.step, state.can_start, state.last_error) == ("stopped", 0, True, None)


def test_a_stop_that_was_asked_for_shows_until_it_is_done(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    own(run, sleeper.pid)
    write(run, began(), step(1))
    run.stop()
    assert (run.files.requests / "stop").exists()
    assert run.state().status == "stopping"
    assert run.files.take_requests() == {"stop"}
    write(run, Stopping(step=2))
    assert run.state().status == "stopping"


def test_nobody_is_asked_when_nothing_runs(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    with pytest.raises(RunError, match=r"fox isn't running \(it is stopped\): nobody would hear 'preview'"):
        run.preview_now()
    assert not list(run.files.requests.iterdir())


def test_speed_and_remaining_time_come_after_thirty_steps(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    own(run, sleeper.pid)
    write(run, began(), *(step(number, at=1000.0 + number, seconds=0.5) for number in range(1, 30)))
    state = run.state()
    assert (state.step, state.loss, state.memory_gib) == (29, 0.25, 1.5)
    assert (state.steps_per_second, state.eta_seconds) == (None, None)
    write(run, step(30, at=1030.0))
    state = run.state()
    assert state.steps_per_second == pytest.approx(2.0)  # the steps alone take half a second
    assert state.eta_seconds == pytest.approx(70.0)  # with what lies between them, a second


def test_the_stage_is_told_while_it_lasts(new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]) -> None:
    run = new_run()
    own(run, sleeper.pid)
    write(run, Progress(stage="encoding images", done=3, total=4))
    state = run.state()
    assert (state.stage, state.stage_done, state.stage_total) == ("encoding images", 3, 4)
    write(run, Progress(stage="encoding images", done=4, total=4))
    assert run.state().stage is None


def test_a_long_log_is_read_from_its_ends_only(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    own(run, sleeper.pid)
    write(run, began(total=9000))
    lines = "".join(step(number, at=float(number)).model_dump_json() + "\n" for number in range(1, 6001))
    with run.files.events.open("a") as file:
        file.write(lines)
    read = 0

    def count(line: bytes) -> Event:
        nonlocal read
        read += 1
        return parse_event(line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlora.runs.event_log.parse_event", count)
        state = run.state()
    assert (state.step, state.total_steps, state.eta_seconds) == (6000, 9000, pytest.approx(3000.0))
    assert read < 100


def test_a_half_written_last_line_is_read_when_it_is_whole(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    write(run, began(), step(1))
    whole = step(2).model_dump_json()
    with run.files.events.open("a") as file:
        file.write(whole[:20])
    events, offset = run.events()
    assert [event.kind for event in events] == ["run_started", "step_finished"]
    assert run.events(offset) == ([], offset)
    assert run.state().step == 1
    with run.files.events.open("a") as file:
        file.write(whole[20:] + "\n")
    events, end = run.events(offset)
    assert [event.step for event in events if isinstance(event, StepFinished)] == [2]
    assert end == run.files.events.stat().st_size


def test_a_line_that_a_crash_cut_off_spoils_no_other(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    write(run, began())
    with run.files.events.open("a") as file:
        file.write('{"time": 1, "kind": "step_fin')
    write(run, step(1))
    assert [event.kind for event in run.events()[0]] == ["run_started", "step_finished"]


def test_losses_that_are_no_numbers_stay_in_the_log(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    nan = float("nan")
    write(run, Validated(step=0, loss=nan, base_loss=1.0, relative_loss=float("inf"), is_best=False))
    (event,) = run.events()[0]
    assert isinstance(event, Validated)
    assert event.loss != event.loss
    assert event.relative_loss == float("inf")


def test_the_log_is_shown_as_a_terminal_would(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"loading\n 10%|#\r 50%|###\r100%|######\n\x1b[31mred\x1b[0m \xff\nlast")
    assert text_tail(log) == "loading\n100%|######\nred �\nlast"
    assert text_tail(log, 2) == "red �\nlast"
    assert text_tail(tmp_path / "none.txt") == ""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("loading\nTraceback (most recent call last):\n  File x\nRuntimeError: no memory\n", "RuntimeError: no memory"),
        (
            "error: this run has 2 problems:\n  one\n  two\nbye\n",
            "error: this run has 2 problems:\n  one\n  two",
        ),
        ("Fatal Python error: Segmentation fault\n\nThread 1:\n", "Fatal Python error: Segmentation fault"),
        ("all is well\n", None),
    ],
)
def test_the_last_words_are_found_in_a_log(tmp_path: Path, log: str, words: str | None) -> None:
    path = tmp_path / "log.txt"
    path.write_text(log)
    assert last_words(path) == words


def test_last_words_of_an_earlier_process_are_not_repeated(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    run.files.log.write_text("ValueError: of long ago\n")
    replace(own(run, sleeper.pid), started="0").write(run.files.process)
    assert "ValueError" not in (run.state().last_error or "")


def test_runs_are_listed_newest_first_and_nothing_else_is(new_run: Callable[..., RunHandle], tmp_path: Path) -> None:
    made = [new_run(name) for name in ("a", "b", "a")]
    for age, run in enumerate(reversed(made)):
        os.utime(run.files.config, (1000 - age, 1000 - age))
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes.txt").touch()
    assert [run.name for run in list_runs(tmp_path / "runs")] == ["a-2", "b", "a"]
    assert list_runs(tmp_path / "nowhere") == []


def test_a_deleted_run_lies_in_the_trash(new_run: Callable[..., RunHandle], tmp_path: Path) -> None:
    run = new_run()
    trashed = run.delete()
    assert trashed.parent == tmp_path / "runs" / ".trash"
    assert (trashed / "config.yaml").is_file()
    assert list_runs(tmp_path / "runs") == []


def test_a_run_is_not_deleted_while_it_runs(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    own(run, sleeper.pid)
    with pytest.raises(RunError, match="fox is starting: stop it before you delete it"):
        run.delete()
    assert run.files.config.is_file()


def test_a_complete_run_is_not_started_again(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    write(run, began(), step(100), COMPLETED)
    assert run.state().status == "finished"
    with pytest.raises(RunError, match="fox is complete: there is nothing to start"):
        run.resume()


@pytest.mark.usefixtures("sleeping_trainer")
def test_a_run_is_started_once_however_often_it_is_asked_for(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    run.files.ask("stop")  # meant for a process of long ago
    run.resume()
    state = run.state()
    assert state.status == "starting"
    with pytest.raises(RunError, match="fox is starting already"):
        resume(run.folder)
    assert run.state().process_id == state.process_id


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_kill_ends_a_process_that_will_not_hear_and_its_children(
    new_run: Callable[..., RunHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('child', child.pid, flush=True); time.sleep(600)"
    )
    monkeypatch.setattr(runs, "SDLORA", (sys.executable, "-c", deaf))
    run = new_run()
    run.resume()
    process_id = run.state().process_id
    child = int(wait_for(lambda: run.log_tail().startswith("child") and run.log_tail().split()[1], "the child", 30))
    assert run.kill(grace_seconds=0.3).status == "crashed"
    assert start_mark(child) is None
    assert process_id is not None
    assert start_mark(process_id) is None


def test_the_command_repeats_the_run(new_run: Callable[..., RunHandle]) -> None:
    run = new_run("blue fox")
    assert run.command() == f"sdlora train --preset {run.files.config}"
    assert files.load(run.files.config).name == "blue fox"


def test_a_clone_has_the_settings_under_a_new_name(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    assert clone(run, "hare") == run.config().model_copy(update={"name": "hare"})
    assert clone(run) == run.config()


def test_results_are_listed_by_step(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    for number in (50, 100):
        folder = run.files.checkpoints / f"step_{number:06d}"
        folder.mkdir()
        (folder / "state.pt").touch()
        (folder / "fox.safetensors").touch()
        run.files.previews(number).mkdir(parents=True)
        (run.files.previews(number) / "00.png").touch()
    (run.files.checkpoints / ".step_000150.7-0123abcd.sdlora-tmp").mkdir()
    (run.files.checkpoints / "best.json").write_text(json.dumps({"step": 50, "relative_loss": 0.9}))
    run.files.adapter("fox").touch()
    assert [(file.step, file.is_best) for file in run.adapter_files()] == [(50, True), (100, False), (None, False)]
    assert [(image.step, image.prompt_index) for image in run.previews()] == [(50, 0), (100, 0)]


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder: it has no config.yaml"):
        find(tmp_path)


def test_launching_loads_no_torch() -> None:
    code = (
        "import sys, sdlora.launch.runs, sdlora.launch.queue, sdlora.launch.jobs, sdlora.launch.images\n"
        "import sdlora.launch.image_worker, sdlora.training.preflight.dry_run, sdlora.runs.checkpoints\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
