"""Many users of one base: `sdlora serve` with shared passes, against the same server taking one image at a time.

`python -m tests.benchmarks.serving` starts the real server on builtin:emoji twice, sends each 64 requests over 16
random adapters from 16 clients, and prints images a CPU second of the server, the times of the answers, and the ratio.
Then it asks for more than may wait (429 with a time to come again), and has 500 requests answered while it looks at the
server's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.emoji_adapters import random_adapter

ADAPTERS, REQUESTS, CLIENTS, STEADY = 16, 64, 16, 500
_PATIENCE_SECONDS = 3600


class Served:
    """A running server and its process."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._process = psutil.Process(process.pid)

    @property
    def cpu_seconds(self) -> float:
        """Of all its threads."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @property
    def memory_mb(self) -> float:
        """Resident, in MB."""
        return float(self._process.memory_info().rss / 1e6)

    def ask(self, number: int, steps: int) -> tuple[int, float]:
        """Status and seconds of a request for one image; each names an adapter, a weight and a seed of its own."""
        name = f"adapter-{number % ADAPTERS}"
        body = {"prompt": f"a cat face, number {number}", "adapters": [f"{name}:0.8"], "seed": number, "steps": steps}
        began = time.monotonic()
        return self._status("/v1/images/generations", json.dumps(body).encode()), time.monotonic() - began

    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        return self._status("/readyz") == 200

    def _status(self, path: str, body: bytes | None = None) -> int:
        try:
            with urllib.request.urlopen(self._url + path, body, timeout=_PATIENCE_SECONDS) as answer:
                answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@contextmanager
def serving(folder: Path, *settings: str) -> Iterator[Served]:
    """A server over these adapters, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sdlora", "serve", "--adapter-folder", str(folder), "--port", str(port)]
    for setting in (f"limits.seconds={_PATIENCE_SECONDS}", "limits.waiting_images=1000", *settings):
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        served = Served(port, process)
        while not served.is_ready():
            assert process.poll() is None
            time.sleep(0.2)
        yield served
    finally:
        process.terminate()
        process.wait()


def ask_all(served: Served, requests: int, clients: int, steps: int) -> tuple[float, list[float], Counter[int]]:
    """CPU seconds of the server, the seconds of each answer with a picture, and the answers by status."""
    before = served.cpu_seconds
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda number: served.ask(number, steps), range(requests)))
    seconds = sorted(taken for status, taken in answers if status == 200)
    return served.cpu_seconds - before, seconds, Counter(status for status, _ in answers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{ADAPTERS} adapters of rank {options.rank}, {options.steps} steps, {threads} threads")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number in range(ADAPTERS):
            random_adapter(folder / f"adapter-{number}.safetensors", number, rank=options.rank)
        rates = {}
        for name, batch in (("shared passes", options.batch), ("one by one", 1)):
            with serving(folder, f"batch_size={batch}") as served:
                ask_all(served, ADAPTERS, CLIENTS, 1)  # reads the adapters
                cpu, seconds, answers = ask_all(served, REQUESTS, CLIENTS, options.steps)
            rates[name] = len(seconds) / cpu
            quantiles = statistics.quantiles(seconds, n=20)
            print(
                f"{name}: {rates[name]:.3f} images a CPU second, p50 {statistics.median(seconds):.1f} s, "
                f"p95 {quantiles[-1]:.1f} s, {dict(answers)}"
            )
        print(f"ratio: {rates['shared passes'] / rates['one by one']:.2f}")
        with serving(folder, "limits.waiting_images=8") as served:
            _, _, answers = ask_all(served, REQUESTS, REQUESTS, options.steps)
            print(f"{REQUESTS} at once where 8 may wait: {dict(answers)}")
        with serving(folder, f"batch_size={options.batch}") as served:
            ask_all(served, 100, CLIENTS, 2)
            first = served.memory_mb
            ask_all(served, STEADY, CLIENTS, 2)
            print(f"memory over {STEADY} requests: {first:.0f} -> {served.memory_mb:.0f} MB")


if __name__ == "__main__":
    main()
