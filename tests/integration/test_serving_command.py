"""`sdlora serve` as a process: what a signal does with the requests that are under way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.emoji_adapters import random_adapter

PATH = "/v1/images/generations"
SECONDS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    random_adapter(folder / "ink.safetensors", seed=0)
    return folder


@pytest.mark.slow
def test_the_command_serves_and_ends_with_what_was_asked(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with _started(folder, log) as (process, port):
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        long = json.dumps({"prompt": "a cat", "steps": 100}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(long)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(head.encode() + long)
            while "asked for" not in log.read_text():
                time.sleep(0.02)
        answers: list[int] = []
        body = json.dumps({"prompt": "a cat", "adapters": ["ink:0.8"], "steps": 10}).encode()
        asking = threading.Thread(target=lambda: answers.append(_status(f"{url}{PATH}", body)))
        asking.start()
        while log.read_text().count("asked for") < 2:
            time.sleep(0.02)
        while b'sdlora_requests_total{status="499"} 1.0' not in _content(f"{url}/metrics"):
            assert time.monotonic() < end, "the one that went away is not noticed"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM if os.name == "posix" else signal.SIGINT)
        asking.join(SECONDS)
        assert answers == [200], log.read_text()
        process.wait(SECONDS)
    said = log.read_text()
    assert "builtin:emoji is loaded: ready for requests" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_second_ctrl_c_answers_that_the_server_is_stopping(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with _started(folder, log) as (process, port), ThreadPoolExecutor(1) as pool:
        body = json.dumps({"prompt": "a cat", "steps": 100, "size": "256x256"}).encode()
        asking = pool.submit(_status, f"http://127.0.0.1:{port}{PATH}", body)
        while "asked for" not in log.read_text():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert asking.result(SECONDS) == 503
        process.wait(SECONDS)
    assert "Traceback" not in log.read_text()


@contextmanager
def _started(folder: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command, ready for requests, and its port; killed at the end."""
    port = _free_port()
    command = [sys.executable, "-m", "sdlora", "serve", "--adapter-folder", str(folder), "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + SECONDS
        while _status(f"http://127.0.0.1:{port}/readyz") != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield process, port
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _content(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        return bytes(answer.read())


def _status(url: str, body: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(url, body, timeout=SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
