"""The page over a large studio, and twenty clients beside a training.

`python -m tests.benchmarks.page_load` makes a studio of 200 runs (one of 50,000 steps), 5,000 pictures in a dataset and
2,000 outputs, and prints the server's CPU seconds for opening each view, the second time. Then it trains `demo.yaml` in
that studio, first alone, then with `--clients` that send what an open page sends, as often as it does, and prints CPU
seconds a step of both, how the server's memory grew, and how long its answers took. Needs Chromium and two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from sdlora import events
from sdlora.runs.event_log import read_events
from tests.support.told_runs import made, started, step, told

PROJECT = Path(__file__).parents[2]
RUNS, LONG_STEPS, PICTURES, OUTPUTS = 200, 50_000, 5_000, 2_000
FINISHED = events.RunFinished(step=20, reason="completed", adapter_path=None, seconds=1.0)


Sent = list[tuple[float, str, bytes]]
"""Requests: when (seconds), address, body."""


def fill(root: Path) -> None:
    """The large studio."""
    for number in range(RUNS - 1):
        told(made(root / "runs", f"run-{number}"), started(20), *(step(one) for one in range(1, 21)), FINISHED)
    told(made(root / "runs", "long"), started(LONG_STEPS), *(step(one) for one in range(1, LONG_STEPS + 1)))
    first = root / "first.png"
    Image.new("RGB", (64, 64), "teal").save(first)
    for folder, number in (("datasets/many", PICTURES), ("outputs/day", OUTPUTS)):
        (root / folder).mkdir(parents=True)
        for index in range(number):
            shutil.copy(first, root / folder / f"{index:05}.png")


class Server:
    """`python -m webui` on a studio, and what it has used."""

    def __init__(self, root: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "webui", "--root", str(root), "--port", str(port), "--no-browser"]
        self.log = (root.parent / "server.log").open("wb")
        self.process = subprocess.Popen(command, cwd=PROJECT, stdout=self.log, stderr=self.log, start_new_session=True)
        self.measured = psutil.Process(self.process.pid)
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                time.sleep(0.3)

    def cpu_seconds(self) -> float:
        """Used so far, by the server itself."""
        times = self.measured.cpu_times()
        return float(times.user + times.system)

    def memory_mib(self) -> float:
        """Resident now."""
        return float(self.measured.memory_info().rss) / 2**20

    def close(self) -> None:
        """End it and all that it started."""
        for child in self.measured.children(recursive=True):
            child.kill()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


def open_page(browser: Any, server: Server, view: str) -> tuple[Any, Sent]:
    """A page on a view, and the list in which its requests to handlers will stand: when, address, body."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    sent: Sent = []

    def note(request: Any) -> None:
        if request.method == "POST":
            sent.append((time.monotonic(), request.url, request.post_data_buffer or b""))

    page.on("request", note)
    page.goto(f"{server.url}/{view}")
    page.wait_for_selector("body[data-ready]")
    return page, sent


def open_history(page: Any) -> None:
    """The tab of earlier pictures, with its first page of them."""
    page.click("#generate-history-tab-button")
    page.wait_for_selector("#generate-history-tab img")


def measure_views(browser: Any, server: Server) -> None:
    """CPU seconds of the server for opening a view, what a waiting page uses meanwhile taken off."""
    views = {
        "runs": ("#runs", lambda page: page.wait_for_selector("#runs-status")),
        "a run of 50,000 steps": ("#runs/long", lambda page: page.wait_for_selector("#runs-chart svg[role=img]")),
        "dataset of 5,000": ("#dataset/many", lambda page: page.wait_for_selector("#dataset-gallery img")),
        "2,000 outputs": ("#generate", open_history),
    }
    for name, (view, is_there) in views.items():
        figures = []
        for _ in range(2):
            before = server.cpu_seconds()
            page, _sent = open_page(browser, server, view)
            try:
                is_there(page)
            except Exception as error:
                print(f"{name}: {type(error).__name__}")
            page.wait_for_timeout(1500)
            opened = server.cpu_seconds() - before
            page.wait_for_timeout(3000)
            idle = (server.cpu_seconds() - before - opened) / 3
            figures.append((opened - 1.5 * idle, idle))
            page.close()
        (first, _), (warm, idle) = figures
        print(f"{name}: {first:.2f} CPU s the first time, {warm:.2f} warm; {idle:.3f} CPU s a second while open")


def recorded_polls(browser: Any, server: Server, view: str, seconds: float = 10.0) -> Sent:
    """What an open page sends in some seconds while nobody touches it."""
    page, sent = open_page(browser, server, view)
    page.wait_for_timeout(4000)
    start = time.monotonic()
    page.wait_for_timeout(seconds * 1000)
    page.close()
    return [(when - start, url, body) for when, url, body in sent if when >= start]


class Client(threading.Thread):
    """Sends recorded requests over and over, as their page did, with a session of its own."""

    def __init__(self, number: int, polls: Sent, every: float, ending: threading.Event) -> None:
        super().__init__(daemon=True)
        self.number, self.polls, self.every, self.ending = number, polls, every, ending
        self.took: list[float] = []
        self.failed = 0

    def run(self) -> None:
        """Until the end."""
        time.sleep(self.every * self.number / 20)
        while not self.ending.is_set():
            began = time.monotonic()
            for when, url, body in self.polls:
                time.sleep(max(0.0, began + when - time.monotonic()))
                if self.ending.is_set():
                    return
                self._send(url, body)
            time.sleep(max(0.0, began + self.every - time.monotonic()))

    def _send(self, url: str, body: bytes) -> None:
        try:
            values = json.loads(body)
            if "session_hash" in values:
                values["session_hash"] = f"client{self.number}"
            body = json.dumps(values).encode()
        except ValueError:
            pass
        began = time.monotonic()
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
        except (urllib.error.URLError, OSError):
            self.failed += 1
        self.took.append(time.monotonic() - began)


class Training:
    """`sdlora train` in the studio; CPU seconds by step."""

    def __init__(self, root: Path) -> None:
        settings = ["previews.prompts=[]", "outputs.checkpoint_every=0", "optimization.steps=100000"]
        settings += ["validation.every=100000"]
        command = [sys.executable, "-m", "sdlora", "train", "--preset", "demo.yaml"]
        for setting in (*settings, f"outputs.folder={root / 'runs'}", "name=beside"):
            command += ["--set", setting]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.measured = psutil.Process(self.process.pid)
        self.log = root / "runs" / "beside" / "events.jsonl"
        while self.step() < 5:
            time.sleep(0.5)

    def step(self) -> int:
        """Steps done."""
        if not self.log.is_file():
            return 0
        found, _ = read_events(self.log)
        return max((event.step for event in found if isinstance(event, events.StepFinished)), default=0)

    def cpu_a_step(self, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> float:
        """CPU seconds a step over some seconds."""
        times, before = self.measured.cpu_times(), self.step()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(2)
            meanwhile()
        after = self.measured.cpu_times()
        used = after.user + after.system - times.user - times.system
        return float(used) / max(1, self.step() - before)

    def close(self) -> None:
        """End it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measure_load(server: Server, root: Path, polls: Sent, options: argparse.Namespace) -> None:
    """A training alone and beside the clients, in turn."""
    training = Training(root)
    try:
        alone = [training.cpu_a_step(options.minutes * 15)]
        used, memory = server.cpu_seconds(), server.memory_mib()
        ending = threading.Event()
        clients = [Client(number, polls, 10.0, ending) for number in range(options.clients)]
        for client in clients:
            client.start()
        most = [memory]
        beside = training.cpu_a_step(options.minutes * 60, lambda: most.append(server.memory_mib()))
        used = server.cpu_seconds() - used
        ending.set()
        for client in clients:
            client.join(timeout=60)
        alone.append(training.cpu_a_step(options.minutes * 15))
    finally:
        training.close()
    took = sorted(one for client in clients for one in client.took)
    base = statistics.mean(alone)
    failed = sum(client.failed for client in clients)
    print(f"{options.clients} clients for {options.minutes:g} minutes: {len(took)} requests, {failed} failed")
    print(f"training: {base:.3f} CPU s a step alone, {beside:.3f} beside them ({beside / base:.2f} times)")
    print(f"server: {used:.1f} CPU s, {used / max(1, len(took)):.4f} a request")
    print(f"server's memory: {memory:.0f} MiB before, at most {max(most):.0f} MiB")
    slow = took[int(0.99 * (len(took) - 1))]
    print(f"answers: median {statistics.median(took):.3f} s, 99% within {slow:.3f} s, slowest {took[-1]:.3f} s")


def main() -> None:
    """Make the studio, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--port", type=int, default=7999)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder) / "studio"
        root.mkdir()
        fill(root)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        server = Server(root, options.port)
        try:
            measure_views(browser, server)
            polls = recorded_polls(browser, server, "#runs/long")
            print(f"an open page sends {len(polls)} requests in 10 s")
            browser.close()
            measure_load(server, root, polls, options)
        finally:
            server.close()


if __name__ == "__main__":
    main()
