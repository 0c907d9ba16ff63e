"""Runs as they are found on disk: their logs, and what may be done with them while nothing runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.errors import ConfigError, RunError
from sdlora.events import (
    StepFinished,
    Validated,
)
from sdlora.launch.runs import RunHandle, clone, find, list_runs, prepare
from sdlora.processes import Heartbeat, ProcessRecord, here
from sdlora.runs import checkpoints
from sdlora.runs.event_log import last_words, text_tail
from tests.support.made_runs import COMPLETED, began, step, write
from tests.support.waiting import wait_for


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunHandle]:
    """Makes runs in one folder."""

    def make(name: str = "fox") -> RunHandle:
        return prepare(files.load(overrides=[f"name={name}"]), tmp_path / "runs")

    return make


def test_the_heartbeat_touches_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdlora.processes.BEAT_SECONDS", 0.01)
    record = tmp_path / "process.json"
    record.touch()
    os.utime(record, (0, 0))
    with Heartbeat(record):
        wait_for(lambda: record.stat().st_mtime > 0, "a heartbeat", 10)


def test_a_run_that_never_began_is_stopped_at_step_0(new_run: Callable[..., RunHandle]) -> None:
    state = new_run().state()
    assert (state.status, state.step, state.can_start, state.last_error) == ("stopped", 0, True, None)


def test_a_finished_run_whose_events_are_lost_is_finished(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    write(run, began(), step(1), COMPLETED)
    ProcessRecord(999_999_999, "long ago", here(), events_offset=0).write(run.files.process)
    run.files.result(run.config()).touch()
    assert run.state().status == "finished"
    run.files.events.write_text("")
    assert run.state().status == "finished"
    run.files.events.unlink()
    assert run.state().status == "finished"
    run.files.result(run.config()).unlink()
    assert run.state().status == "crashed"


def test_nobody_is_asked_when_nothing_runs(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    with pytest.raises(RunError, match=r"fox isn't running \(it is stopped\): nobody would hear 'preview'"):
        run.preview_now()
    assert not list(run.files.requests.iterdir())


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


def test_a_complete_run_is_not_started_again(new_run: Callable[..., RunHandle]) -> None:
    run = new_run()
    write(run, began(), step(100), COMPLETED)
    assert run.state().status == "finished"
    with pytest.raises(RunError, match="fox is complete: there is nothing to start"):
        run.resume()


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


def test_checkpoints_that_go_while_they_are_removed_stop_nothing(
    new_run: Callable[..., RunHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    for number in (1, 2, 3):
        (run.files.checkpoint(number)).mkdir()
        (run.files.checkpoint(number) / "state.pt").touch()
    remove = shutil.rmtree

    def somebody_was_faster(path: Path) -> None:
        remove(path)
        remove(path)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", somebody_was_faster)
    assert [one.step for one in checkpoints.prune(run.files, 1)] == [1, 2]
    assert [one.step for one in checkpoints.find(run.files)] == [3]


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder: it has no config.yaml"):
        find(tmp_path)
