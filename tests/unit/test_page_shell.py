"""The page's command line, its memory, and what every handler is wrapped in."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sdlora.errors import ConfigError
from sdlora.serving.addresses import as_url, why_not
from webui.__main__ import main, parse
from webui.state import PageState
from webui.workspace import Workspace


def test_a_public_address_needs_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "my-machine"):
        with pytest.raises(SystemExit) as ended:
            parse(["--host", host])
        assert ended.value.code == 2
    assert "add --auth user:password" in capsys.readouterr().err
    assert parse(["--host", "0.0.0.0", "--auth", "me:secret"]).auth == "me:secret"
    assert parse(["--host", "127.0.0.5"]).auth is None
    assert parse(["--host", "::1"]).auth is None


def test_a_password_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDLORA_WEBUI_AUTH", "me:secret:with:colons")
    assert parse(["--host", "0.0.0.0"]).auth == "me:secret:with:colons"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--auth", "nobody"], "write it as user:password"),
        (["--auth", ":x"], "write it as user:password"),
        (["--port", "70000"], "from 1 to 65535"),
        (["--proxy", "my-proxy"], "give the address, or network"),
        (["--proxy", "0.0.0.0/0"], "give the address, or network"),
        (["--root", __file__], "is a file: give a folder"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_ends_with_code_2_and_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["--port", str(port), "--no-browser"]) == 2
    assert "choose another with --port" in capsys.readouterr().err
    assert why_not("127.0.0.1", port) is None
    assert "no such address" in str(why_not("no.such.host.invalid", 1))
    assert as_url("::1", 80) == "http://[::1]:80"


def test_a_missing_gradio_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("webui.__main__.find_spec", lambda name: None)
    monkeypatch.setattr("webui.__main__.why_not", lambda host, port: None)
    assert main(["--no-browser"]) == 2
    assert "the page needs the package 'gradio', which is not installed. Run:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EROFS, "its disk is read-only"), (errno.EACCES, "no permission"), (errno.EEXIST, "exists already")],
)
def test_a_root_that_can_not_be_written_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, said: str
) -> None:
    def refuse(workspace: Workspace) -> None:
        raise OSError(number, os.strerror(number), str(workspace.datasets))

    monkeypatch.setattr("webui.__main__.why_not", lambda host, port: None)
    monkeypatch.setattr(Workspace, "prepare", refuse)
    assert main(["--no-browser", "--root", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "datasets") in line
    assert said in line


def test_processes_of_the_page_inherit_no_password_and_uploads_stay_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str | None] = []
    monkeypatch.setattr("webui.__main__.why_not", lambda host, port: None)
    monkeypatch.setattr("webui.app.serve", lambda *_, auth, **__: given.append(auth) or 0)
    monkeypatch.setenv("SDLORA_WEBUI_AUTH", "me:secret")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["--no-browser", "--root", str(tmp_path / "studio")]) == 0
    assert given == ["me:secret"]
    assert "SDLORA_WEBUI_AUTH" not in os.environ
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "studio" / ".webui" / "uploads")


def test_fields_are_remembered_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    state = PageState(path)
    state.update({"train.name": "ä", "train.steps": 30, "page.tab": "mix"})
    state.set("train.steps", 40)
    assert PageState(path).get("train.steps") == 40
    assert PageState(path).get("train.name") == "ä"
    assert PageState(path).get("train.nothing", "absent") == "absent"
    assert PageState(path).get("page.tab") == "mix"
    assert not list(path.parent.glob("*.part"))


def test_two_servers_over_one_folder_keep_each_others_fields(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    one, other = PageState(path), PageState(path)
    one.set("train.name", "fox")
    other.set("train.steps", 30)
    one.set("mix.method", "svd")
    assert PageState(path).get("train.name") == "fox"
    assert PageState(path).get("train.steps") == 30
    assert one.get("train.steps") == 30


def test_a_memory_that_another_process_spoilt_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = PageState(path)
    state.set("a", 1)
    path.write_text("{broken", encoding="utf-8")
    state.set("b", 2)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1, "b": 2}


def test_a_damaged_memory_is_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("{broken", encoding="utf-8")
    state = PageState(path)
    assert state.get("a") is None
    state.set("a", 1)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_what_json_cannot_hold_leaves_the_memory_as_it_was(tmp_path: Path) -> None:
    state = PageState(tmp_path / "state.json")
    state.set("a", 1)
    with pytest.raises(TypeError):
        state.set("a", object())
    assert state.get("a") == 1


def test_handlers_tell_our_errors_in_full_and_others_by_kind(caplog: pytest.LogCaptureFixture) -> None:
    gr = pytest.importorskip("gradio")
    from webui.context import confirm, handler

    def ours() -> None:
        raise ConfigError("<the form>", ["one", "two"])

    def other() -> None:
        raise KeyError("secret path")

    def steps() -> object:
        yield 1
        raise ConfigError("late", ["three"])

    with pytest.raises(gr.Error, match="&lt;the form&gt; has 2 problems:<br>  one"):
        handler(ours)()
    with pytest.raises(gr.Error, match="That did not work: KeyError"):
        handler(other)()
    assert "secret path" in caplog.text
    answers = handler(steps)()
    assert next(answers) == 1
    with pytest.raises(gr.Error, match="three"):
        next(answers)
    assert '"Delete {#count}?"' in confirm("Delete {#count}?")


@pytest.mark.slow
def test_the_whole_page_is_built_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    question = f"""
import sys
from pathlib import Path
from webui.app import build
from webui.workspace import Workspace
build(Workspace(Path({str(tmp_path)!r})))
heavy = [name for name in ("torch", "diffusers", "transformers", "peft", "accelerate") if name in sys.modules]
assert not heavy, heavy
"""
    project = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    answer = subprocess.run(
        [sys.executable, "-c", question], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_the_status_line_says_what_runs_and_how_it_ended(tmp_path: Path) -> None:
    from sdlora.launch.runs import RunHandle
    from sdlora.launch.watch import Snapshot, WatchedRun
    from sdlora.runs.state import RunState
    from webui.news import Told
    from webui.runs.view import StatusLine

    line = StatusLine()
    told = []
    for state in (
        RunState("running", step=57, total_steps=100),
        RunState("starting", stage="caching images"),
        RunState("crashed"),
        RunState("crashed"),
    ):
        told.append(line.told(Snapshot((WatchedRun(RunHandle(tmp_path / "cat & dog"), state),))))
    assert told[0] == Told("cat & dog: 57 % of 100 steps", "cat & dog: 50 % of 100 steps")
    assert told[1].words == "cat & dog: caching images"
    assert told[2] == told[3] == Told(*["cat & dog has crashed: see the Runs tab"] * 2)
    assert StatusLine().told(Snapshot()) == Told()


@pytest.mark.slow
def test_machine_facts_are_told_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdlora.launch import machine

    assert dict(machine.versions())["pillow"] != "not installed"
    assert any("free of" in value for _, value in machine.memory())
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA X, 512, 24576, 7'\necho nonsense\n", encoding="utf-8")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if os.name == "posix":
        assert machine.cards() == [("NVIDIA X", "512 of 24576 MiB used, 7 % busy")]


def test_the_trash_is_counted_and_emptied(tmp_path: Path) -> None:
    from sdlora.trash import Size, empty_folder, size_of

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"12345")
    assert size_of(tmp_path) == Size(1, 5)
    assert empty_folder(tmp_path) == Size(1, 5)
    assert list(tmp_path.iterdir()) == []
