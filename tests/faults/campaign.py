"""What every kind of fault needs: a training in a process of its own that can be disturbed, and what became of it."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sdlora.__main__ import program
from sdlora.config import files
from sdlora.events import StepFinished
from sdlora.runs import checkpoints
from sdlora.runs.event_log import iterate_backwards
from sdlora.runs.folder import RunFolder
from sdlora.training.loop.run import train
from tests.integration.test_resume import weights_hash

STEPS = 8
SECONDS_AT_MOST = 300.0


@dataclass(frozen=True)
class Try:
    """What became of one fault."""

    survived: bool
    """Whether the work could be brought to its end, or was refused with a message that says why."""
    lost_steps: int = 0
    wrong: bool = False
    """Whether it ended with another result than without the fault, and nothing was said."""
    traceback: bool = False
    what: str = ""
    """Told where something is not as it should be."""


@dataclass
class Lab:
    """A small training to disturb."""

    root: Path
    model: Path
    images: Path
    chance: random.Random
    number: int = 0
    expected: dict[str, str] = field(default_factory=dict)
    """Hashes of what comes out undisturbed, by what it is."""
    seconds: float = 0.0
    """How long an undisturbed training takes."""

    def new_runs(self) -> Path:
        """An empty folder for the runs of a try."""
        self.number += 1
        folder = self.root / f"runs-{self.number}"
        shutil.rmtree(self.root / f"runs-{self.number - 1}", ignore_errors=True)
        folder.mkdir()
        return folder

    def settings(self, runs: Path, *more: str, images: Path | None = None) -> list[str]:
        """A command line that trains in some folder."""
        values = [
            "name=run", f"base_model.model={self.model}", f"images.folder={images or self.images}",
            f"images.cache_folder={runs / 'cache'}", "images.resolution=64", "captions.dropout=0.2", "adapter.rank=2",
            "adapter.dropout=0.1", f"optimization.steps={STEPS}", "optimization.precision=fp32",
            "optimization.learning_rate=1e-3", "optimization.threads=1", f"outputs.folder={runs}",
            "outputs.checkpoint_every=2", "validation.fraction=0.2", "validation.every=3", "previews.prompts=[a cat]",
            "previews.steps=1", "outputs.self_test=false", *more,
        ]  # fmt: skip
        return ["train", *(part for value in values for part in ("--set", value))]

    def learn(self) -> None:
        """Train undisturbed, for what has to come out of the disturbed ones."""
        # What the forked processes need is loaded here, once: the first training loads the rest and warms torch up.
        for module in ("training.preflight.summary", "adapters.algebra.mix", "launch.queue"):
            importlib.import_module(f"sdlora.{module}")
        train(files.load(overrides=self.settings(self.new_runs())[2::2]))
        runs, started = self.new_runs(), time.monotonic()
        ended = run(self.settings(runs), runs / "out.txt")
        self.seconds = time.monotonic() - started
        assert ended.code == 0, ended.output
        self.expected["adapter"] = weights_hash(runs / "run" / "run.safetensors")
        ended = run(["resume", str(runs / "run"), "--set", f"optimization.steps={STEPS + 2}"], runs / "out.txt")
        assert ended.code == 0, ended.output
        self.expected["extended"] = weights_hash(runs / "run" / "run.safetensors")

    def moment(self) -> float:
        """Some time within a training, in seconds from its start."""
        return self.chance.uniform(0.02, 1.0) * self.seconds


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; negative, the signal that ended it."""
    output: str

    @property
    def has_traceback(self) -> bool:
        """Whether a person was shown Python's own words."""
        return "Traceback (most recent" in self.output or "This should not happen" in self.output


@contextlib.contextmanager
def started(arguments: list[str], output: Path, prepare: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A command in a process forked off this one, which has loaded everything already; gives its process id."""

    def command() -> None:
        sys.argv = ["sdlora", *arguments]
        # torch makes its threads anew after a fork, which two that load weights at once must not do each.
        torch.set_num_threads(1)
        prepare()
        program()

    yield forked(command, output)


def forked(work: Callable[[], object], output: Path) -> int:
    """Do some work in a process forked off this one, what it prints to a file; returns its process id."""
    sys.stdout.flush()
    process_id = os.fork()
    if process_id == 0:
        code = 1
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            # Python itself would print one. It must not get any further here: on its way out of this fork it would
            # clear away the folder of the whole campaign.
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return process_id


def wait(process_id: int, output: Path, seconds: float = SECONDS_AT_MOST) -> Ended:
    """Until a process has ended; one that takes too long is killed."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process_id, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(process_id, signal.SIGKILL)
        time.sleep(0.01)
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), text)


def run(arguments: list[str], output: Path, prepare: Callable[[], object] = lambda: None) -> Ended:
    """A command from its start to its end."""
    output.unlink(missing_ok=True)
    with started(arguments, output, prepare) as process_id:
        return wait(process_id, output)


def steps_lost(folder: RunFolder) -> int:
    """How many steps a run had done beyond its newest checkpoint."""
    done = next((event.step for event in iterate_backwards(folder.events) if isinstance(event, StepFinished)), 0)
    newest = checkpoints.newest(folder)
    return max(0, done - (newest.step if newest else 0))


def finish(lab: Lab, runs: Path, *, expected: str = "adapter", more: tuple[str, ...] = ()) -> Try:
    """Go on with a disturbed run until its end, and compare what came out with what had to."""
    folder = RunFolder(runs / "run")
    output = runs / "resumed.txt"
    lost = steps_lost(folder)
    is_there = folder.config.is_file()
    ended = run(["resume", str(folder.path), *more] if is_there else lab.settings(runs), output)
    if "this run is complete" in ended.output:
        ended = Ended(0, ended.output)
    adapter = next(iter(sorted(runs.glob("run*/run.safetensors"))), None)
    if ended.code != 0 or adapter is None:
        words = ended.output.strip().splitlines()[-1:] or [f"exit code {ended.code}"]
        refused = ended.code == 2 and not ended.has_traceback
        return Try(refused, lost, traceback=ended.has_traceback, what="" if refused else words[0][:200])
    wrong = weights_hash(adapter) != lab.expected[expected]
    said = wrong and "warning" in ended.output
    problems = ["another result" if wrong and not said else "", "traceback" if ended.has_traceback else ""]
    debris = [path.name for left in ("*.sdlora-tmp", ".finishing") for path in folder.path.rglob(left)]
    problems.append(f"left behind: {debris}" if debris else "")
    return Try(not debris, lost, wrong and not said, ended.has_traceback, "; ".join(filter(None, problems)))
