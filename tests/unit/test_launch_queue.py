"""Runs that wait for their turn. The trainers here are processes that only sleep."""

from __future__ import annotations

import os
import shutil
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
from sdlora.events import RunFinished
from sdlora.launch import queue, queue_file, runs
from sdlora.launch.runs import RunHandle, list_runs, prepare
from sdlora.launch.watch import RunWatch
from sdlora.processes import ProcessRecord, start_mark
from sdlora.runs import changes
from sdlora.sinks.jsonl import JsonlSink
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow  # starts processes

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture(autouse=True)
def sleeping_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(runs, "SDLORA", SLEEPER)
    yield
    for run in list_runs(tmp_path / "runs"):
        end(run)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def new_run(folder: Path) -> Callable[..., RunHandle]:
    def make(name: str, device: str = "auto") -> RunHandle:
        return prepare(files.load(overrides=[f"name={name}", f"optimization.device={device}"]), folder)

    return make


def end(run: RunHandle) -> None:
    """Let a run's process be gone."""
    record = ProcessRecord.read(run.files.process)
    if record and start_mark(record.process_id) == record.started:
        os.kill(record.process_id, signal.SIGKILL)
        wait_for(lambda: start_mark(record.process_id) != record.started, "the end of a process", 30)


def names(handles: tuple[RunHandle, ...] | list[RunHandle]) -> list[str]:
    return [handle.name for handle in handles]


def test_one_run_trains_at_a_time_and_the_others_follow_in_order(
    new_run: Callable[..., RunHandle], folder: Path
) -> None:
    waiting = [new_run(name) for name in ("a", "b", "c")]
    for run in waiting:
        queue.enqueue(run)
    assert [run.state().status for run in waiting] == ["queued"] * 3
    assert names(queue.advance(folder)) == ["a"]
    assert queue.advance(folder) == []
    found = queue.read(folder)
    assert (names(found.running), names(found.waiting)) == (["a"], ["b", "c"])
    end(waiting[0])
    assert names(queue.advance(folder)) == ["b"]
    assert [run.state().status for run in waiting] == ["crashed", "starting", "queued"]


def test_a_run_that_is_queued_twice_keeps_its_place(new_run: Callable[..., RunHandle], folder: Path) -> None:
    for name in ("a", "b", "c"):
        queue.enqueue(new_run(name))
    queue.advance(folder)
    b = next(run for run in list_runs(folder) if run.name == "b")
    assert RunWatch(folder).resume(b) == "a"
    assert names(queue.read(folder).waiting) == ["b", "c"]
    queue.enqueue(b, 1)  # a place that is asked for counts
    assert names(queue.read(folder).waiting) == ["c", "b"]


def test_a_run_begun_elsewhere_counts_as_busy(new_run: Callable[..., RunHandle], folder: Path) -> None:
    other, waiting = new_run("other"), new_run("waiting")
    other.resume()
    queue.enqueue(waiting)
    assert queue.advance(folder) == []


def test_another_card_has_its_own_turn(new_run: Callable[..., RunHandle], folder: Path) -> None:
    for name, device in (("a", "cuda:0"), ("b", "auto"), ("c", "cuda:1"), ("d", "cuda:1")):
        queue.enqueue(new_run(name, device))
    assert names(queue.advance(folder)) == ["a", "c"]
    assert names(queue.read(folder).waiting) == ["b", "d"]


def test_order_can_be_changed_and_runs_taken_out(new_run: Callable[..., RunHandle], folder: Path) -> None:
    a, b, c = (new_run(name) for name in ("a", "b", "c"))
    for run in (a, b, c):
        queue.enqueue(run)
    queue.reorder(folder, ["c", "nosuch", "a"])
    assert names(queue.read(folder).waiting) == ["c", "a", "b"]
    queue.remove(a)
    assert a.state().status == "stopped"
    queue.enqueue(a, position=0)
    assert names(queue.read(folder).waiting) == ["a", "c", "b"]


def test_nothing_starts_while_the_queue_is_held(new_run: Callable[..., RunHandle], folder: Path) -> None:
    queue.enqueue(new_run("a"))
    queue.hold(folder)
    assert queue.advance(folder) == []
    assert queue.read(folder).is_held
    queue.hold(folder, is_held=False)
    assert names(queue.advance(folder)) == ["a"]


def test_runs_that_are_gone_or_running_leave_the_queue(new_run: Callable[..., RunHandle], folder: Path) -> None:
    gone, running, last = (new_run(name) for name in ("gone", "running", "last"))
    for run in (gone, running, last):
        queue.enqueue(run)
    shutil.rmtree(gone.folder)
    running.resume()
    assert names(queue.read(folder).waiting) == ["last"]
    assert queue.advance(folder) == []
    end(running)
    assert running.state().status == "crashed", "once started it must not wait again"
    assert names(queue.advance(folder)) == ["last"]


def test_a_deleted_run_leaves_the_queue(new_run: Callable[..., RunHandle], folder: Path) -> None:
    run = new_run("a")
    queue.enqueue(run)
    run.delete()
    assert queue.read(folder).waiting == ()


def test_a_complete_run_can_not_wait(new_run: Callable[..., RunHandle]) -> None:
    run = new_run("a")
    sink = JsonlSink(run.files.events)
    sink.emit(RunFinished(step=1, reason="completed", adapter_path=None, seconds=1.0))
    sink.close()
    with pytest.raises(RunError, match="a is finished: there is nothing to queue"):
        queue.enqueue(run)


@pytest.fixture
def extended(new_run: Callable[..., RunHandle]) -> RunHandle:
    """A complete run that was given other settings afterwards, when the clock had been set back by hours."""
    run = new_run("extended")
    sink = JsonlSink(run.files.events)
    sink.emit(RunFinished(step=1, reason="completed", adapter_path=None, seconds=1.0, time=time.time() + 10_000))
    sink.close()
    changes.record(run.files, [changes.Change("optimization.steps", 1, 2)])
    return run


def test_a_complete_run_with_other_settings_goes_on_whatever_the_clock_says(extended: RunHandle) -> None:
    extended.resume()
    assert extended.state().status == "starting"


def test_a_complete_run_with_other_settings_can_wait_too(
    extended: RunHandle, new_run: Callable[..., RunHandle], folder: Path
) -> None:
    first = new_run("first")
    first.resume()
    assert RunWatch(folder).resume(extended) == "first"
    assert names(queue.read(folder).waiting) == ["extended"]
    end(first)
    assert names(queue.advance(folder)) == ["extended"]


def test_submitting_starts_at_once_when_nothing_runs(folder: Path) -> None:
    first = queue.submit(files.load(overrides=["name=a", "images.folder=builtin:blueprint"]), folder)
    second = queue.submit(files.load(overrides=["name=a", "images.folder=builtin:blueprint"]), folder)
    assert (first.name, first.state().status) == ("a", "starting")
    assert (second.name, second.state().status) == ("a-2", "queued")


def test_two_processes_that_advance_at_once_start_one_run(new_run: Callable[..., RunHandle], folder: Path) -> None:
    for name in ("a", "b"):
        queue.enqueue(new_run(name))
    code = (
        "import sys; from pathlib import Path; from sdlora.launch import queue, runs\n"
        f"runs.SDLORA = {SLEEPER!r}\n"
        "sys.stdin.readline()\n"
        f"print(*[run.name for run in queue.advance(Path({str(folder)!r}))], sep=',')\n"
    )
    pair = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in pair:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=60)[0].strip() for process in pair) == ["", "a"]
    assert names(queue.read(folder).running) == ["a"]


def test_a_run_waits_until_its_process_is_on_record(
    new_run: Callable[..., RunHandle], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue(new_run("a"))

    def die(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt  # as little is done after it as after a kill

    monkeypatch.setattr(runs, "spawn", die)
    with pytest.raises(KeyboardInterrupt):
        queue.advance(folder)
    assert names(queue.read(folder).waiting) == ["a"]


def test_two_servers_that_start_at_once_train_one_run(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from sdlora.config import files\n"
        "from sdlora.errors import RunError; from sdlora.launch import runs, starting\n"
        f"runs.SDLORA, prepare = {SLEEPER!r}, starting.prepare\n"
        "starting.prepare = lambda *values: (time.sleep(1), prepare(*values))[1]\n"
        "sys.stdin.readline()\n"
        f"try: starting.Starter(Path({str(folder)!r})).start(files.load(overrides=['name=a']))\n"
        "except RunError as error: print(error)\n"
        "else: print('started')\n"
    )
    pair = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in pair:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = sorted(process.communicate(timeout=60)[0].strip() for process in pair)
    assert told == ["a is training: add this run to the queue instead.", "started"]


def test_a_run_with_a_damaged_configuration_fails_alone(new_run: Callable[..., RunHandle], folder: Path) -> None:
    broken, sound = new_run("broken"), new_run("sound")
    broken.files.config.write_text("seed: [", encoding="utf-8")
    queue.enqueue(broken)
    queue.enqueue(sound)

    assert names(queue.advance(folder)) == ["sound"]

    state = broken.state()
    assert state.status == "failed"
    assert "not valid YAML" in str(state.last_error)
    assert "error: " in broken.log_tail()
    assert names(queue.read(folder).waiting) == []


def test_a_run_whose_log_can_not_be_written_fails_alone(new_run: Callable[..., RunHandle], folder: Path) -> None:
    broken, sound = new_run("broken"), new_run("sound")
    broken.files.log.mkdir()
    queue.enqueue(broken)
    queue.enqueue(sound)

    assert names(queue.advance(folder)) == ["sound"]

    assert broken.state().status == "failed"
    assert "log.txt" in str(broken.state().last_error)
    assert names(queue.read(folder).waiting) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"names": 5, "is_held": false}', '{"names": ["r'])
def test_a_damaged_queue_is_on_hold_and_never_written_over(tmp_path: Path, content: str) -> None:
    (tmp_path / queue_file.FILE).write_text(content, encoding="utf-8")
    assert queue_file.read(tmp_path).is_held
    queue_file.change(tmp_path, lambda order: order.without("r"))  # going on with a run by hand is not kept from it
    with pytest.raises(RunError, match=r"queue\.json is damaged .*, so which runs wait is not known"):
        queue_file.change(tmp_path, lambda order: replace(order, names=("r",)))
    assert (tmp_path / queue_file.FILE).read_text(encoding="utf-8") == content
