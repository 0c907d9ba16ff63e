"""Runs with a process: what its life and death say of their state, and starting and killing it."""

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
from sdlora.errors import RunError
from sdlora.events import (
    Event,
    Progress,
    Stopping,
    parse_event,
)
from sdlora.launch import runs
from sdlora.launch.runs import RunHandle, prepare, resume
from sdlora.processes import ProcessRecord, start_mark
from tests.support.made_runs import COMPLETED, FAILED, STOPPED, began, own, step, write
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow  # starts processes

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunHandle]:
    """Makes runs in one folder."""

    def make(name: str = "fox") -> RunHandle:
        return prepare(files.load(overrides=[f"name={name}"]), tmp_path / "runs")

    return make


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


def test_last_words_of_an_earlier_process_are_not_repeated(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    run.files.log.write_text("ValueError: of long ago\n")
    replace(own(run, sleeper.pid), started="0").write(run.files.process)
    assert "ValueError" not in (run.state().last_error or "")


def test_a_run_is_not_deleted_while_it_runs(
    new_run: Callable[..., RunHandle], sleeper: subprocess.Popen[bytes]
) -> None:
    run = new_run()
    own(run, sleeper.pid)
    with pytest.raises(RunError, match="fox is starting: stop it before you delete it"):
        run.delete()
    assert run.files.config.is_file()


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


def test_launching_loads_no_torch() -> None:
    code = (
        "import sys, sdlora.launch.runs, sdlora.launch.queue, sdlora.launch.jobs, sdlora.launch.images\n"
        "import sdlora.launch.image_worker, sdlora.training.preflight.dry_run, sdlora.runs.checkpoints\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "values",
    [
        {"process_id": "x", "started": 5, "place": None},
        {"process_id": 1, "started": "0", "place": ""},
        {"process_id": 1, "started": "0", "place": "here", "events_offset": -4},
    ],
)
def test_a_damaged_record_is_none(tmp_path: Path, values: dict[str, object]) -> None:
    (tmp_path / "process.json").write_text(json.dumps(values), encoding="utf-8")
    assert ProcessRecord.read(tmp_path / "process.json") is None


def test_ctrl_c_while_the_program_loads_prints_no_traceback() -> None:
    code = (
        "import runpy, sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'psutil':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "runpy.run_module('sdlora', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (ended.returncode, ended.stderr) == (130, b"")


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_pressed_again_and_again_prints_no_traceback() -> None:
    code = (
        "import signal, time; from sdlora.processes import without_traceback\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "with without_traceback():\n    print('begun', flush=True); time.sleep(60)"
    )
    for presses in (1, 20):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        _, errors = process.communicate(timeout=60)
        assert errors == b""
        assert process.returncode in ((130,) if presses == 1 else (130, -signal.SIGINT))


def test_what_a_program_loads_is_not_looked_through_for_garbage() -> None:
    code = (
        "import gc; from sdlora.processes import seldom_collected\n"
        "found = []; gc.callbacks.append(lambda phase, told: found.append(told['generation']))\n"
        "with seldom_collected():\n    loaded = [[] for _ in range(300_000)]\n"
        "print(0 in found, 2 in found, gc.get_freeze_count() > len(loaded))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True False True\n"
