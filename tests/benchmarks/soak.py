"""A long training: does it keep what it should let go?

`python -m tests.benchmarks.soak --steps 5000` trains builtin:emoji on small pictures in a process of its own, with
checkpoints, validation and previews on the way, and prints the slope of its resident memory in MB a thousand steps
(least squares, the first fifth left out) and its open files at both ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from sdlora.events import StepFinished
from sdlora.runs.event_log import iterate_backwards

SETTINGS = (
    "images.resolution=64", "images.bucket_min=64", "adapter.layers=attention", "adapter.rank=4",
    "optimization.batch_size=1", "optimization.precision=fp32", "optimization.threads=1", "previews.every=1000",
    "previews.steps=2", "outputs.checkpoint_every=500", "outputs.keep_checkpoints=2", "validation.every=500",
    "outputs.self_test=false",
)  # fmt: skip


def newest_step(log: Path) -> int:
    """The newest step that the run has told of."""
    if not log.is_file():
        return 0
    return next((event.step for event in iterate_backwards(log) if isinstance(event, StepFinished)), 0)


def main() -> None:
    """Train, sample, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sdlora", "train", "--preset", "demo.yaml"]
        for setting in (*SETTINGS, f"optimization.steps={options.steps}", f"outputs.folder={folder}", "name=soak"):
            command += ["--set", setting]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        measured, log = psutil.Process(process.pid), Path(folder) / "soak" / "events.jsonl"
        samples: list[tuple[int, float, int]] = []
        try:
            while process.poll() is None:
                time.sleep(2)
                try:
                    memory, files = measured.memory_info().rss / 1e6, measured.num_fds()
                except psutil.NoSuchProcess:
                    break
                if (step := newest_step(log)) and memory:  # nothing is left of a process that has just ended
                    samples.append((step, memory, files))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    kept = [sample for sample in samples if sample[0] > options.steps / 5]
    slope, _ = statistics.linear_regression([step / 1000 for step, _, _ in kept], [memory for _, memory, _ in kept])
    print(f"{kept[-1][0]} steps, exit code {process.returncode}, {len(kept)} samples")
    print(f"memory {kept[0][1]:.0f} MB to {kept[-1][1]:.0f} MB, slope {slope:+.2f} MB a thousand steps")
    print(f"open files {kept[0][2]} to {kept[-1][2]}")


if __name__ == "__main__":
    main()
