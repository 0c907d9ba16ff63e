"""The page over a large studio, and twenty clients beside a training.

`python -m tests.benchmarks.page_load` makes a studio of 200 runs (one of 50,000 steps), 5,000 pictures in a dataset and
2,000 outputs. It opens a page there and prints the server's CPU seconds for each view, the first time and after that.
Then it trains in that studio, first alone, then beside clients that each hold an open Runs tab: they ask for news each
second and, where there are some, fetch them as the page does. It prints the training's CPU seconds a step both times,
the growth of the server's memory, the slowest answers, and the handlers that used most CPU seconds in one call.
Needs Chromium and two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from sdlora import events
from sdlora.runs.event_log import iterate_backwards
from tests.browser.browsing import open_tab
from tests.support.told_runs import made, started, step, told

PROJECT = Path(__file__).parents[2]
RUNS, PICTURES, OUTPUTS = 200, 5_000, 2_000
TAGS = ("fox", "red", "blue", "sitting", "standing", "tree", "house", "sky", "cloud", "night", "day", "happy", "hat")
FINISHED = events.RunFinished(step=20, reason="completed", adapter_path=None, seconds=1.0)
TRAINING = (
    "images.resolution=64", "images.bucket_min=64", "optimization.threads=1", "optimization.steps=100000",
    "previews.prompts=[]", "outputs.checkpoint_every=0", "validation.every=100000",
)  # fmt: skip


def fill(root: Path, long_steps: int) -> None:
    """The large studio."""
    for number in range(RUNS - 1):
        told(made(root / "runs", f"run-{number}"), started(20), *(step(one) for one in range(1, 21)), FINISHED)
    ended = FINISHED.model_copy(update={"step": long_steps})
    told(made(root / "runs", "long"), started(long_steps), *map(step, range(1, long_steps + 1)), ended)
    first = root / "first.png"
    Image.new("RGB", (64, 64), "teal").save(first)
    for folder, number in (("datasets/many", PICTURES), ("datasets/few", 20), ("outputs/day", OUTPUTS)):
        (root / folder).mkdir(parents=True)
        for index in range(number):
            shutil.copy(first, root / folder / f"{index:05}.png")
            if folder.startswith("datasets"):
                tags = ", ".join(random.sample(TAGS, 6))
                (root / folder / f"{index:05}.txt").write_text(f"teal square, {tags}, number {index}", "utf-8")


def cpu_seconds(process: psutil.Process) -> float:
    """Used so far by one process."""
    times = process.cpu_times()
    return float(times.user + times.system)


class Server:
    """`python -m webui` on a studio."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.calls = root.parent / "calls.jsonl"
        command = [sys.executable, "-m", "tests.benchmarks.timed_page", str(self.calls)]
        command += ["--root", str(root), "--port", str(port), "--no-browser"]
        with (root.parent / "server.log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)
        self.measured = psutil.Process(self.process.pid)
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                time.sleep(0.3)

    def used_by(self, act: Callable[[], object], page: Any) -> float:
        """CPU seconds of the server for an act of the page, what the open page costs anyway taken off."""
        before = cpu_seconds(self.measured)
        page.wait_for_timeout(2000)
        idle, before = cpu_seconds(self.measured) - before, cpu_seconds(self.measured)
        began = time.monotonic()
        act()
        page.wait_for_timeout(1000)
        waited = time.monotonic() - began
        return cpu_seconds(self.measured) - before - idle / 2 * waited

    def print_handlers(self, place: int, since: int, shown: int = 6) -> int:
        """The handlers whose dearest call cost most since that line of the record. Returns the number of lines.

        place: 1 for the seconds of their own thread, 2 for those of the whole process meanwhile.
        """
        calls = [json.loads(line) for line in self.calls.read_text(encoding="utf-8").splitlines()]
        by_name: dict[str, list[float]] = {}
        for call in calls[since:]:
            by_name.setdefault(call[0], []).append(call[place])
        dearest = sorted(by_name.items(), key=lambda each: -max(each[1]))[:shown]
        told = "; ".join(f"{name} {max(used):.2f} (of {len(used):,})" for name, used in dearest)
        print(f"the dearest call of a handler in CPU s: {told}", flush=True)
        return len(calls)

    def close(self) -> None:
        """End it and all that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def choose_dataset(page: Any, name: str) -> None:
    """Turn to another dataset in the Dataset tab."""
    page.click("#dataset-chosen input")
    page.click(f"[role=option]:has-text('{name}')")
    page.wait_for_function(
        f"document.querySelector('#dataset-opened textarea, #dataset-opened input').value == '{name}'"
    )


def show_run(page: Any, name: str) -> None:
    """Press a run in the list and wait for its curve."""
    page.click(f"#runs-list [data-run='{name}']")
    page.wait_for_selector(f"#runs-status:has-text('{name}')")
    page.wait_for_selector("#runs-chart svg[role=img]")


def measure_views(browser: Any, server: Server, rounds: int = 4) -> None:
    """CPU seconds of the server for each view, the first time and the median of the times after that."""
    before = cpu_seconds(server.measured)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{server.url}/#settings")
    page.wait_for_selector("body[data-ready]")
    print(f"the page itself: {cpu_seconds(server.measured) - before:.2f} CPU s", flush=True)

    def history() -> None:
        open_tab(page, "generate")
        page.click("#generate-history-tab-button")
        page.wait_for_selector("#generate-history-tab img")

    def buckets() -> None:
        for visible in ("visible", "hidden"):
            page.click("#dataset-buckets-box > button")
            page.wait_for_selector("#dataset-buckets svg", state=visible)

    views: dict[str, Callable[[], object]] = {
        f"list of {RUNS} runs": lambda: open_tab(page, "runs"),
        "a run of 20 steps": lambda: show_run(page, "run-7"),
        "the long run": lambda: show_run(page, "long"),
        "the Dataset tab": lambda: open_tab(page, "dataset"),
        "a dataset of 20": lambda: choose_dataset(page, "few"),
        f"a dataset of {PICTURES:,}": lambda: choose_dataset(page, "many"),
        f"the buckets of {PICTURES:,}": buckets,
        f"{OUTPUTS:,} outputs": history,
        "adapters": lambda: open_tab(page, "mix"),
        "home": lambda: open_tab(page, "home"),
        "settings": lambda: open_tab(page, "settings"),
    }
    figures: dict[str, list[float]] = {name: [] for name in views}
    for _ in range(rounds):
        for name, act in views.items():
            figures[name].append(server.used_by(act, page))
    for name, (first, *later) in figures.items():
        print(f"{name}: {first:.2f} CPU s the first time, {statistics.median(later):.2f} after that", flush=True)
    page.close()


class Training:
    """`sdlora train` in the studio."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "sdlora", "train", "--preset", "demo.yaml"]
        for setting in (*TRAINING, f"outputs.folder={root / 'runs'}", "name=beside"):
            command += ["--set", setting]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.measured = psutil.Process(self.process.pid)
        self.log = root / "runs" / "beside" / "events.jsonl"
        while self.step() < 20:
            time.sleep(0.5)

    def step(self) -> int:
        """Steps done."""
        if not self.log.is_file():
            return 0
        newest = iterate_backwards(self.log)
        return next((event.step for event in newest if isinstance(event, events.StepFinished)), 0)

    def cpu_a_step(self, seconds: float) -> float:
        """CPU seconds a step over some time."""
        before, steps = cpu_seconds(self.measured), self.step()
        time.sleep(seconds)
        return (cpu_seconds(self.measured) - before) / max(1, self.step() - steps)

    def close(self) -> None:
        """End it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Asked:
    """A request that the page made of a handler, to be made again by others."""

    url: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    place_of_sent: int = -1
    """Which of its inputs says what the page shows already."""


def fetch(url: str, body: object = None) -> bytes:
    """The answer to one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def recorded(browser: Any, server: Server) -> Asked:
    """What an open Runs tab asks for while a run trains."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked: list[Asked] = []

    def note(request: Any) -> None:
        if request.method != "POST" or "predict" not in request.url:
            return
        body = json.loads(request.post_data or "{}")
        places = [place for place, value in enumerate(body.get("data", ())) if str(value).startswith('{"list"')]
        if places:
            asked.append(Asked(request.url, body, places[0]))

    page.on("request", note)
    page.goto(f"{server.url}/#runs/beside")
    page.wait_for_selector("body[data-ready]")
    page.wait_for_timeout(10_000)
    page.close()
    return asked[-1]


class Client(threading.Thread):
    """An open Runs tab without its browser."""

    def __init__(self, number: int, server: Server, asked: Asked, ending: threading.Event) -> None:
        super().__init__(daemon=True)
        self.number, self.server, self.asked, self.ending = number, server, asked, ending
        self.sent, self.stamp = "{}", ""
        self.took: list[float] = []
        self.fetched = self.failed = 0

    def run(self) -> None:
        """Until the end."""
        time.sleep(self.number / 20)
        while not self.ending.wait(1.0):
            began = time.monotonic()
            try:
                stamp = json.loads(fetch(f"{self.server.url}/news/runs"))["stamp"]
                if stamp != self.stamp:
                    self.stamp = stamp
                    self._fetch_news()
            except (OSError, ValueError, KeyError):
                self.failed += 1
            self.took.append(time.monotonic() - began)

    def _fetch_news(self) -> None:
        data = list(self.asked.body["data"])
        data[self.asked.place_of_sent] = self.sent
        answer = json.loads(fetch(self.asked.url, {**self.asked.body, "data": data, "session_hash": f"c{self.number}"}))
        news = answer["data"][0]
        if isinstance(news, str):
            self.sent = json.loads(news)["sent"]
            self.fetched += 1


def measure_load(browser: Any, server: Server, root: Path, clients: int, minutes: float) -> None:
    """A training alone and beside the clients, in turn: alone, beside, alone, beside."""
    training = Training(root)
    try:
        asked = recorded(browser, server)
        alone, beside = [], []
        everyone: list[Client] = []
        memory: list[float] = []
        server_used = 0.0
        for _ in range(2):
            alone.append(training.cpu_a_step(minutes * 15))
            ending = threading.Event()
            now = [Client(number, server, asked, ending) for number in range(clients)]
            for client in now:
                client.start()
            time.sleep(5)
            memory.append(server.measured.memory_info().rss / 2**20)
            before = cpu_seconds(server.measured)
            beside.append(training.cpu_a_step(minutes * 30))
            server_used += cpu_seconds(server.measured) - before
            memory.append(server.measured.memory_info().rss / 2**20)
            ending.set()
            for client in now:
                client.join()
            everyone += now
    finally:
        training.close()
    took = sorted(seconds for client in everyone for seconds in client.took)
    print(f"{clients} clients for {minutes:g} minutes: {len(took):,} looks, {sum(each.fetched for each in everyone):,} "
          f"with news, {sum(each.failed for each in everyone)} failed")  # fmt: skip
    print(
        f"CPU seconds a step alone {alone[0]:.4f} and {alone[1]:.4f}, beside them {beside[0]:.4f} and {beside[1]:.4f}"
    )
    print(
        f"server: {server_used / len(took):.4f} CPU s a look, memory (MiB) {' '.join(f'{each:.0f}' for each in memory)}"
    )
    print(f"a look took {statistics.median(took):.3f} s, 99 of 100 at most {took[int(len(took) * 0.99)]:.2f} s, "
          f"the slowest {took[-1]:.2f} s")  # fmt: skip


def main() -> None:
    """Fill, measure, print."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10.0, help="with clients; 0 for the views only")
    parser.add_argument("--steps", type=int, default=50_000, help="of the long run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder) / "studio"
        fill(root, options.steps)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=120_000
        )
        server = Server(root)
        try:
            measure_views(browser, server)
            calls = server.print_handlers(2, 0)
            if options.minutes:
                measure_load(browser, server, root, options.clients, options.minutes)
                server.print_handlers(1, calls)
        finally:
            server.close()


if __name__ == "__main__":
    main()
