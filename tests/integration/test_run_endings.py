"""What others are told of a run: a command and an address at its end, Weights & Biases all along."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError, RunError
from sdlora.events import Event
from sdlora.launch import runs
from sdlora.sinks.wandb import WandbSink
from sdlora.training.loop.run import train

WRITE_ENVIRONMENT = "import os, sys, json; json.dump({k: v for k, v in os.environ.items() if k.startswith('SDLORA_')}, open(sys.argv[1], 'w'))"  # noqa: E501


class Heard:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def emit(self, event: Event) -> None:
        self.messages += [message] if (message := getattr(event, "message", None)) else []

    def close(self) -> None:
        pass


class Listener(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    server.told = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def configure(tiny_images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def with_overrides(*overrides: str) -> TrainConfig:
        settings = [
            f"images.folder={tiny_images}", "images.resolution=64", "images.bucket_step=32", "adapter.rank=2",
            "adapter.layers=attention", "optimization.steps=2", "optimization.precision=fp32",
            f"outputs.folder={tmp_path / 'runs'}", "outputs.self_test=false", "name=told",
        ]  # fmt: skip
        return files.load(overrides=[*settings, *overrides])

    return with_overrides


def test_a_command_and_an_address_are_told_how_the_run_ended(configure, listener, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    config = configure(f"outputs.webhook=http://127.0.0.1:{listener.server_address[1]}/hook?key=1")
    outputs = config.outputs.model_copy(update={"on_finish": f'{sys.executable} -c "{WRITE_ENVIRONMENT}" {told}'})
    result = train(config.model_copy(update={"outputs": outputs}))
    by_command = json.loads(told.read_text())
    assert by_command["SDLORA_OUTCOME"] == "completed"
    assert (by_command["SDLORA_RUN"], by_command["SDLORA_STEP"]) == (str(result.folder), "2")
    assert Path(by_command["SDLORA_ADAPTER"]) == result.adapter
    (by_address,) = listener.told
    assert (by_address["outcome"], by_address["name"], by_address["step"]) == ("completed", "told", 2)
    assert by_address["text"] == by_address["content"]
    assert by_address["text"].startswith("told completed at step 2 after")


def test_a_failed_run_is_told_too(configure, listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr("sdlora.training.loop.run.prepare", fail)
    with pytest.raises(RunError):
        train(configure(f"outputs.webhook=http://127.0.0.1:{listener.server_address[1]}"))
    assert listener.told[0]["outcome"] == "failed"
    assert listener.told[0]["text"] == "told failed at step 0: the disk is full"


def test_what_goes_wrong_at_the_end_is_said_and_the_adapter_is_there(configure) -> None:
    heard = Heard()
    command = f"{sys.executable} -c 'raise SystemExit(3)'"
    config = configure("outputs.webhook=http://127.0.0.1:9/nobody?secret=x")
    config = config.model_copy(update={"outputs": config.outputs.model_copy(update={"on_finish": command})})
    result = train(config, [heard])
    assert result.adapter.is_file()
    said = "\n".join(heard.messages)
    assert "outputs.webhook: 127.0.0.1 can't be told" in said
    assert "secret" not in said
    assert "SystemExit" not in said, "what follows the program may hold a password"
    assert "ended with code 3" in said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("outputs.on_finish='run \"it'", "is no command"),
        ("outputs.on_finish=''", "is empty"),
        ("outputs.webhook=example.org", "is no address; write one such as https"),
    ],
)
def test_what_is_no_command_or_address_is_refused(configure, setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configure(setting)


def test_a_command_that_is_not_there_is_refused_before_training(configure) -> None:
    with pytest.raises(ConfigError, match=r"outputs\.on_finish.*\n.*no program 'no-such-program'"):
        train(configure("outputs.on_finish=no-such-program --now"))


def test_a_page_starts_no_commands(configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runs only where sdlora train or resume is called by hand"):
        runs.prepare(configure("outputs.on_finish=python -V"))
    assert not (tmp_path / "runs").exists()


def test_weights_and_biases_is_told_offline(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    heard = Heard()
    result = train(configure("outputs.wandb=true", "outputs.wandb_project=mine"), [heard])
    logs = list((result.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(logs) == 1
    content = logs[0].read_bytes()
    assert b"train/loss" in content
    assert b"mine" in content
    assert (result.folder / "wandb-id.txt").read_text() in logs[0].name
    assert not any("failed and is switched off" in message for message in heard.messages)


def test_weights_and_biases_that_cannot_begin_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(RunError, match="No API key configured.*WANDB_MODE=offline"):
        WandbSink(tmp_path, "sdlora", {})
