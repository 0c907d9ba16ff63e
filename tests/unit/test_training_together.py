"""What is said when processes that train together end: one message, which names the one that ended first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from sdlora import __main__ as command_line
from sdlora.errors import ConfigError, LostProcessError, TrainingError
from sdlora.launch.runs import RunHandle
from sdlora.launch.together import _in_words
from sdlora.processes import ProcessRecord, is_main_process, num_processes, without_launcher
from sdlora.runs import restarts
from sdlora.runs.folder import RunFolder
from sdlora.training.workers import check_cards

LOST = LostProcessError.exit_code


def failed(**codes: int) -> ChildFailedError:
    """Processes that ended with these codes: p0=1, p1=-9."""
    return ChildFailedError(
        "sdlora",
        {int(name[1:]): ProcessFailure(int(name[1:]), 100, code, error_file="") for name, code in codes.items()},
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def test_a_killed_process_is_named_and_those_that_lost_it_are_not(run: RunFolder) -> None:
    told = str(_in_words(failed(p0=LOST, p1=-signal.SIGKILL, p2=-signal.SIGTERM), 3, run.path))
    assert told.startswith(
        "process 1 of 3 (counted from 0) was ended by SIGKILL, by someone or by the system as memory"
    )
    assert "Nothing is saved yet: sdlora resume" in told
    assert told.endswith("run --processes 3")
    assert "No step was made yet" in str(_in_words(failed(p0=-9), 2, None))


def test_an_error_that_a_process_wrote_down_is_told_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(reply))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        command_line._end("the picture a.png can't be read", 2)
    assert capsys.readouterr().err == ""  # the launcher shows it
    error = ChildFailedError("sdlora", {1: ProcessFailure(1, 100, 2, str(reply))})
    told = _in_words(error, 2, tmp_path)
    assert str(told) == "process 1 of 2 (counted from 0): the picture a.png can't be read"
    assert told.exit_code == 2
    assert json.loads(reply.read_text())["message"]["message"] == "the picture a.png can't be read"


def test_without_a_launcher_that_shows_it_each_process_says_its_own_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        command_line._end("no memory", TrainingError.exit_code)
    assert capsys.readouterr().err == "error: process 1: no memory\n"
    with pytest.raises(SystemExit):
        command_line._end("told by the first", 1, is_told=True)
    assert capsys.readouterr().err == ""


def test_a_second_try_of_a_launcher_finds_the_run_that_the_first_began(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    restarts.note(run)
    assert not run.launcher.exists()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    restarts.note(run)
    assert restarts.begun(tmp_path) is None  # a first try begins a run of its own
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarts.begun(tmp_path) == run.path
    assert restarts.begun(tmp_path / "elsewhere") is None
    ProcessRecord.of(os.getpid()).write(run.launcher)  # of another launcher
    assert restarts.begun(tmp_path) is None


@pytest.mark.slow
def test_killing_a_run_ends_its_launcher_which_would_start_it_again(run: RunFolder) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = ProcessRecord.of(launcher.pid)
    record.write(run.launcher)
    RunHandle(run.path).kill(grace_seconds=1.0)
    assert not record.is_alive(run.launcher)


def test_a_process_of_its_own_inherits_nothing_of_the_launchers() -> None:
    inherited = {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a", "ACCELERATE_USE_CPU": "1", "PATH": "/bin"}
    assert without_launcher(inherited) == {"PATH": "/bin"}


def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(Exception, match=r"4 processes need a card each and this machine has 2 cards: take 2 or"):
        check_cards("auto", 4)
    check_cards("auto", 2)
    check_cards("cpu", 4)


def test_a_rank_without_a_launcher_makes_nobody_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_main_process()


@pytest.mark.parametrize("told", ["two", "0", "-1", "1.5", ""])
@pytest.mark.parametrize("variable", ["WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_number_of_processes_that_is_none_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, variable: str, told: str
) -> None:
    monkeypatch.setenv(variable, told)
    with pytest.raises(ConfigError, match=f"{variable}={told}: a launcher sets it to its number of processes"):
        num_processes(variable)
