"""One run in several processes: the same curve, the same end after a loss, and the bytes that a step exchanges.

    python -m tests.benchmarks.several_processes curves   1, 2 and 4 processes of one global batch, and a run of 2 that
                                                          goes on with 1 and with 4
    python -m tests.benchmarks.several_processes kills    one process of two killed at random moments; the run starts
                                                          again by itself, or is gone on with by hand, in turns
    python -m tests.benchmarks.several_processes bytes    what goes over the network in a step (Linux, as root: in a
                                                          network of its own, so that nothing else is counted)
    python -m tests.benchmarks.several_processes link     two machines: the time a step takes longer over links of
                                                          several rates, against the formula (as root: two networks with
                                                          a cable between them whose rate `tc` holds down)

Trains builtin:emoji in fp32 on the CPU, gloo between the processes. `--runs FOLDER` keeps the runs, and what is there
already is not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from sdlora.events import Event, RunStarted, StepFinished
from sdlora.runs.event_log import iterate_events
from sdlora.training.loop.run import train
from tests.integration.test_resume import weights_hash

SETTINGS = (
    "images.folder={images}", "images.cache_folder={runs}/cache", "images.resolution=64", "images.bucket_min=64",
    "images.horizontal_flip=true", "base_model.model=builtin:emoji", "captions.tag_dropout=0.2",
    "captions.shuffle_tags=true", "adapter.rank=4", "optimization.batch_size=4", "optimization.precision=fp32",
    "optimization.device=cpu", "optimization.learning_rate=5e-4", "optimization.threads=1", "validation.fraction=0.2",
    "validation.every=10", "previews.every=0", "outputs.precision=fp32", "outputs.self_test=false",
    "outputs.folder={runs}",
)  # fmt: skip
RATES = (1000, 300, 100)
"""Mb/s."""
IMAGES = Path(__file__).parents[2] / "sample_images" / "blueprint"
RING = 2
"""A ring passes each byte on twice, once to add up and once to hand out, but for a share of 1/N that stays."""


def options(runs: Path, *more: str) -> list[str]:
    """Settings as `--set` options."""
    values = [text.format(images=IMAGES, runs=runs) for text in SETTINGS]
    return [part for value in (*values, *more) for part in ("--set", value)]


def sdlora(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command from its start to its end, its output kept."""
    return subprocess.run([sys.executable, "-m", "sdlora", *arguments], capture_output=True, text=True, check=False)


def trained(runs: Path, name: str, processes: int, *more: str) -> Path:
    """The folder of a finished run, trained now if it isn't there."""
    if not (runs / name / f"{name}.safetensors").is_file():
        shutil.rmtree(runs / name, ignore_errors=True)
        ended = sdlora("train", *options(runs, f"name={name}", *more), "--processes", str(processes))
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return runs / name


def gone_on(runs: Path, source: Path, name: str, processes: int, steps: int) -> Path:
    """A copy of a run, trained further by some processes."""
    if not (runs / name / f"{source.name}.safetensors").is_file():
        shutil.rmtree(runs / name, ignore_errors=True)
        shutil.copytree(source, runs / name)
        for checkpoint in (runs / name / "checkpoints").glob("step_*"):
            if int(checkpoint.name[-6:]) > steps:
                shutil.rmtree(checkpoint)
        (runs / name / f"{source.name}.safetensors").unlink()
        ended = sdlora("resume", str(runs / name), "--processes", str(processes))
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return runs / name


def losses(run: Path) -> dict[int, float]:
    """Each step's loss; of a step made twice the one that counts."""
    return {event.step: event.loss for event in iterate_events(run / "events.jsonl") if isinstance(event, StepFinished)}


def compare(run: Path, with_run: Path) -> tuple[float, float, float]:
    """The largest relative difference of losses, the largest of adapter values, and that over the largest value."""
    one, other = losses(run), losses(with_run)
    assert one.keys() == other.keys(), (run, with_run)
    of_losses = max(abs(one[step] - other[step]) / abs(other[step]) for step in one)
    first, second = (load_file(next(folder.glob("*.safetensors"))) for folder in (run, with_run))
    of_values = max(float((first[name] - second[name]).abs().max()) for name in second)
    largest = max(float(tensor.abs().max()) for tensor in second.values())
    return of_losses, of_values, of_values / largest


def curves(runs: Path, steps: int) -> None:
    """The table of the same global batch on 1, 2 and 4 processes, and of a run that changes their number."""
    more = (f"optimization.steps={steps}", f"outputs.checkpoint_every={steps // 2}", "outputs.keep_checkpoints=99")
    alone = trained(runs, "one", 1, *more)
    two = trained(runs, "two", 2, *more)
    print(f"{steps} steps of 4 images, builtin:emoji, fp32; against one process")
    print(f"{'':<34}{'losses (relative)':>20}{'adapter':>12}{'of its largest':>16}")
    rows = [("one process, once more", trained(runs, "one-again", 1, *more)), ("two processes", two)]
    rows.append(("four processes", trained(runs, "four", 4, *more)))
    rows.append(("two, from half way on one", gone_on(runs, two, "two-one", 1, steps // 2)))
    rows.append(("two, from half way on four", gone_on(runs, two, "two-four", 4, steps // 2)))
    for label, run in rows:
        of_losses, of_values, relative = compare(run, alone)
        print(f"{label:<34}{of_losses:>20.1e}{of_values:>12.1e}{relative:>16.1e}")


def kills(runs: Path, tries: int, seed: int) -> None:
    """The table of runs of two processes, one of which is killed at a random moment."""
    chance = random.Random(seed)
    more = ("optimization.steps=16", "outputs.checkpoint_every=4")
    expected = trained(runs, "undisturbed", 2, *more)
    wanted = weights_hash(expected / "undisturbed.safetensors")
    for number in range(tries):
        # By steps and not by the clock, which says little where others use the machine; -1 is before the first.
        name, rank, step, wait = f"killed-{number}", chance.randrange(2), chance.randrange(-1, 17), chance.random()
        by_itself = number % 2 == 0
        for old in runs.glob(f"{name}*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        command = ["train", *options(runs, f"name={name}", *more), "--processes", "2"]
        command += ["--restarts", "1"] if by_itself else []
        output = runs / f"{name}.txt"
        with output.open("w") as file:
            launcher = subprocess.Popen([sys.executable, "-m", "sdlora", *command], stdout=file, stderr=file)
            while newest_step(runs / name) < step if step > 0 else not has_processes(launcher.pid):
                time.sleep(0.02)
            time.sleep(wait * (10.0 if step < 1 else 0.5))
            at, is_killed = newest_step(runs / name), kill(launcher.pid, rank)
            code = launcher.wait()
        messages = [line for line in output.read_text().splitlines() if f"process {rank} of 2" in line]
        ended = f"exit code {code}"
        if not by_itself and code != 0:
            again = ["resume", str(runs / name), "--processes", "2"] if (runs / name).is_dir() else command
            ended += f", then {sdlora(*again).returncode}"
        folders = [path for path in sorted(runs.glob(f"{name}*")) if path.is_dir()]
        same = [weights_hash(path) == wanted for folder in folders for path in folder.glob("*.safetensors")]
        print(
            f"{number + 1:>2}. process {rank} killed at step {at:>2}{'' if is_killed else ' (it had ended)'}; "
            f"{'--restarts 1' if by_itself else 'resume'}; {ended}; runs {len(folders)}; same weights {same}; "
            f"told: {messages[-1:]}",
            flush=True,
        )


def has_processes(launcher: int) -> bool:
    """Whether a launcher has started what it is to start."""
    return any("RANK" in environment_of(child) for child in psutil.Process(launcher).children())


def environment_of(process: psutil.Process) -> dict[str, str]:
    """Its variables; none where it has ended meanwhile."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


def kill(launcher: int, rank: int) -> bool:
    """End one of a launcher's processes at once; returns whether it was there."""
    for child in psutil.Process(launcher).children():
        if environment_of(child).get("RANK") == str(rank):
            child.kill()
            return True
    return False


def newest_step(run: Path) -> int:
    """How far a run has come."""
    return max(losses(run), default=0) if (run / "events.jsonl").is_file() else 0


class NetworkSink:
    """Notes what the loopback device has carried when each step has ended."""

    def __init__(self) -> None:
        self.trainable, self.bytes = 0, [0]

    def emit(self, event: Event) -> None:
        """Read the counter of this process's network."""
        if isinstance(event, RunStarted):
            self.trainable = event.trainable_parameters
        elif isinstance(event, StepFinished):
            lines = Path("/proc/self/net/dev").read_text().splitlines()
            self.bytes.append(next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:")))

    def close(self) -> None:
        """There is nothing to close."""


def measure_bytes(runs: Path, processes: int, steps: int) -> None:
    """Inside one of the processes: train, and let the main one print what the others and it sent."""
    sink = NetworkSink()
    settings = options(runs, f"name=bytes-{processes}", f"optimization.steps={steps}", "validation.fraction=0")[1::2]
    from sdlora.config import files

    train(files.load(overrides=settings), sinks=[sink] if os.environ["RANK"] == "0" else [])
    if os.environ["RANK"] != "0":
        return
    # The first steps meet each other for the first time.
    total = (sink.bytes[-1] - sink.bytes[5]) / (len(sink.bytes) - 6)
    formula = RING * (processes - 1) / processes * 4 * sink.trainable
    sent = total / processes
    print(
        f"{processes} processes: {sink.trainable:,} trainable parameters, {4 * sink.trainable:,} bytes of gradients; "
        f"each sends {sent:,.0f} bytes a step, by the formula 2 (N - 1) / N x 4 x parameters = {formula:,.0f}: "
        f"{sent / formula:.3f}"
    )


def over_the_network(runs: Path, steps: int) -> None:
    """The bytes of 2 and 4 processes, each in a network of its own."""
    for processes in (2, 4):
        shutil.rmtree(runs / f"bytes-{processes}", ignore_errors=True)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        inner = [*launch, "-m", "tests.benchmarks.several_processes", "worker", "--runs", str(runs)]
        command = " ".join(["ip link set lo up &&", *inner, "--steps", str(steps)])
        subprocess.run(["unshare", "--net", "sh", "-c", command], check=True, stderr=subprocess.DEVNULL)


def over_links(runs: Path, steps: int) -> None:
    """The table of what a link's rate adds to a step of two machines, and what the formula says."""
    print(f"{'Mb/s':>10}{'s a step':>10}{'more than unlimited':>21}{'by the formula':>16}")
    unlimited = None
    for rate in (None, *RATES):
        seconds, trainable = steps_over_a_link(runs, steps, rate)
        unlimited = seconds if unlimited is None else unlimited
        formula = 0.0 if rate is None else RING * (1 / 2) * 4 * trainable * 8 / (rate * 1e6)
        print(f"{rate or 'unlimited':>10}{seconds:>10.2f}{seconds - unlimited:>21.2f}{formula:>16.2f}", flush=True)


def steps_over_a_link(runs: Path, steps: int, rate: int | None) -> tuple[float, int]:
    """The median seconds of a step of two processes in two networks, and the trainable parameters."""
    places, cables = ("sdlora-a", "sdlora-b"), ("sdlora-va", "sdlora-vb")
    shutil.rmtree(runs / "link", ignore_errors=True)
    try:
        for place in places:
            run("ip", "netns", "add", place)
        run("ip", "link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for number, (place, cable) in enumerate(zip(places, cables, strict=True), start=1):
            run("ip", "link", "set", cable, "netns", place)
            inside = ("ip", "netns", "exec", place)
            run(*inside, "ip", "address", "add", f"10.77.0.{number}/24", "dev", cable)
            run(*inside, "ip", "link", "set", cable, "up")
            run(*inside, "ip", "link", "set", "lo", "up")
            if rate is not None:
                shape = ("root", "tbf", "rate", f"{rate}mbit", "burst", "256kb", "latency", "50ms")
                run(*inside, "tc", "qdisc", "add", "dev", cable, *shape)
        more = (f"optimization.steps={steps}", "name=link", "validation.fraction=0", "adapter.rank=16")
        machines = []
        for rank, (place, cable) in enumerate(zip(places, cables, strict=True)):
            launch = ["ip", "netns", "exec", place, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
            launch += ["--nproc-per-node=1", f"--node-rank={rank}", "--master-addr=10.77.0.1", "--master-port=29500"]
            train_it = ["-m", "sdlora", "train", *options(runs, *more, "adapter.layers=all")]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": cable}
            with (runs / f"{place}.txt").open("w") as log:
                machines.append(
                    subprocess.Popen([*launch, *train_it], env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        assert [machine.wait() for machine in machines] == [0, 0]
    finally:
        for place in places:
            subprocess.run(["ip", "netns", "delete", place], check=False, stderr=subprocess.DEVNULL)
    events = list(iterate_events(runs / "link" / "events.jsonl"))
    trainable = next(event.trainable_parameters for event in events if isinstance(event, RunStarted))
    times = [event.time for event in events if isinstance(event, StepFinished)]
    # The first steps meet each other for the first time.
    return statistics.median(after - before for before, after in itertools.pairwise(times[3:])), trainable


def run(*command: str) -> None:
    """A command of the system that must succeed."""
    subprocess.run(command, check=True, capture_output=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curves", "kills", "bytes", "link", "worker"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = (given.runs or Path(folder)).resolve()
        runs.mkdir(parents=True, exist_ok=True)
        if given.what == "curves":
            curves(runs, given.steps)
        elif given.what == "kills":
            kills(runs, given.tries, given.seed)
        elif given.what == "bytes":
            over_the_network(runs, given.steps)
        elif given.what == "link":
            over_links(runs, given.steps)
        else:
            measure_bytes(runs, int(os.environ["WORLD_SIZE"]), given.steps)


if __name__ == "__main__":
    main()
