"""Kinds of faults of what stands behind a page: the queue that starts trainings, and the process that draws images.

A server is here all of a page but the browser: it makes runs, puts them into an order, starts jobs and moves the queue
on, as presses on the page do. Its trainings are stand-ins (see `stand_in`), so that a try takes seconds; what a kill
does to a real one is told by the kinds in `kinds`.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from PIL import Image

from sdlora.config import files
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig, ImageFilesConfig
from sdlora.errors import RunError
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import Grid
from sdlora.launch import jobs, queue_file, runs
from sdlora.launch.images import ImageQueue
from sdlora.launch.runs import RunHandle, list_runs
from sdlora.launch.watch import RunWatch
from sdlora.processes import ProcessRecord
from tests.faults import stand_in
from tests.faults.campaign import Ended, Lab, Try, forked, wait
from tests.faults.kinds import real_after

_SERVER_SECONDS = 120.0
_WORKER = """
import ctypes, pathlib, sys
is_real, mark, place, nth = sys.argv[1:]
if int(nth) and not pathlib.Path(mark).exists():  # the first worker only
    pathlib.Path(mark).touch()
    ctypes.CDLL(None).fault_arm(place.encode(), ctypes.c_long(int(nth)), -9, 0)
if is_real == "True":
    from sdlora.launch.image_worker import main
else:
    from tests.faults.stand_in import paint as main
main()
"""
_WORKER_CALLS = 65
"""Calls that change files which an undisturbed worker makes for the requests of a try, as counted once."""


@dataclass
class Place:
    """A workspace for servers, and what they said they had done."""

    root: Path
    settings: list[str]
    """Of a run, as `section.name=value`."""

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.root / "work" / "runs"

    @property
    def jobs(self) -> Path:
        """The folder of the jobs."""
        return self.root / "work" / "jobs"

    @property
    def journal(self) -> Path:
        """What a person was told to be done: kind and name, one a line."""
        return self.root / "journal.txt"

    def told(self, kind: str) -> list[str]:
        """Names of one kind from the journal."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == kind]

    def tell(self, kind: str, name: str) -> None:
        """Add to the journal."""
        with self.journal.open("a") as file:
            file.write(f"{kind} {name}\n")


def server_killed(lab: Lab) -> Try:
    """kill -9 of a server at work, at a random moment or file change; the next one goes on with what it finds."""
    return _settled(_killed(lab))


def two_servers(lab: Lab) -> Try:
    """Two servers at work with one folder, of which one may be killed."""
    nth = lab.chance.randint(1, _calls(lab)) if lab.chance.random() < 0.5 else 0
    place = _place(lab)
    both = [(place.root / f"out-{number}.txt", lab.chance.random(), (nth, 0)[number]) for number in range(2)]
    started = [forked(partial(_serve, place, seed, nth), output) for output, seed, nth in both]
    ended = [wait(process_id, output) for process_id, (output, *_) in zip(started, both, strict=True)]
    return _settled(place, *ended)


def reused_ids(lab: Lab) -> Try:
    """After a kill of server and trainings, their process ids belong to other programs: nothing is taken for alive."""
    place = _killed(lab)
    stranger = ProcessRecord.of(os.getpid())
    for handle in list_runs(place.runs):
        record = ProcessRecord.read(handle.files.process)
        if record is not None and handle.state().is_active and lab.chance.random() < 0.5:
            place.tell("killed", handle.name)
            with suppress(ProcessLookupError):
                os.kill(record.process_id, signal.SIGKILL)
            time.sleep(0.1)
        if record is None or not record.is_alive(handle.files.process):
            ProcessRecord(stranger.process_id, "1", stranger.place).write(handle.files.process)
    return _settled(place)


def clock_back(lab: Lab) -> Try:
    """The clock is set back by hours under a server, which is killed, and the next one lives in that time."""
    place = _killed(lab, lambda: setattr(time, "time", real_after(lab.chance.uniform(0, 2))))
    return _settled(place, prepare=lambda: setattr(time, "time", real_after(-1)))


def _place(lab: Lab) -> Place:
    root = lab.new_runs()
    place = Place(root, lab.settings(root)[2::2])
    place.runs.mkdir(parents=True)
    return place


def _calls(lab: Lab) -> int:
    """How many calls of an undisturbed server change files."""
    if "server calls" not in lab.expected:
        place = _place(lab)
        told = place.root / "calls.txt"

        def count() -> None:
            _serve(place, 0.5, 0)
            told.write_text(str(ctypes.CDLL(None).fault_count()))

        wait(forked(count, place.root / "out.txt"), place.root / "out.txt")
        lab.expected["server calls"] = told.read_text()
    return int(lab.expected["server calls"])


def _killed(lab: Lab, prepare: Callable[[], object] = lambda: None) -> Place:
    """A workspace whose server was killed: mostly at a change of a file, sometimes at any moment."""
    nth = lab.chance.randint(1, _calls(lab)) if lab.chance.random() < 0.7 else 0
    place, seed = _place(lab), lab.chance.random()
    process_id = forked(lambda: (prepare(), _serve(place, seed, nth)), place.root / "out.txt")
    if not nth:
        time.sleep(lab.chance.uniform(0.1, 4))
        os.kill(process_id, signal.SIGKILL)
    wait(process_id, place.root / "out.txt")
    return place


def _serve(place: Place, seed: float, nth: int) -> None:
    """A server at work until nothing waits or runs; killed at its nth change of a file, if nth isn't 0."""
    stand_in.take_the_place()
    chance = random.Random(seed)
    ctypes.CDLL(None).fault_arm(str(place.root / "work").encode(), ctypes.c_long(nth), -int(signal.SIGKILL), 0)
    watch = RunWatch(place.runs)
    for number in range(chance.randint(3, 5)):
        _press(place, watch, chance, f"run-{os.getpid()}-{number}")
        time.sleep(chance.choice((0, 0, 0.3)))
    _follow(watch)


def _press(place: Place, watch: RunWatch, chance: random.Random, name: str) -> None:
    """One thing that a person may do on a page."""
    config = files.load(overrides=[*place.settings, f"name={name}", f"outputs.folder={place.runs}"])
    waiting = watch.snapshot().waiting
    with suppress(RunError):  # refused with a reason: another one trains
        match chance.randrange(5):
            case 0:
                place.tell("asked", watch.start(config).name)
            case 1:
                handle = runs.prepare(config, place.runs)
                watch.resume(handle)
                place.tell("asked", handle.name)
            case 2:
                place.tell("job", jobs.start_job(["explain", "adapter.rank"], place.jobs).name)
            case 3 if waiting:
                watch.move(chance.choice(waiting), chance.choice((-1, 1)))
            case _:
                place.tell("asked", watch.enqueue(config).name)


def _follow(watch: RunWatch) -> None:
    """Look at the runs, as an open page does, until none waits or trains."""
    end = time.monotonic() + _SERVER_SECONDS
    quiet = 0
    while quiet < 3 and time.monotonic() < end:
        snapshot = watch.snapshot(now=True)
        quiet = 0 if snapshot.waiting or snapshot.active else quiet + 1
        time.sleep(0.05)


def _settled(place: Place, *before: Ended, prepare: Callable[[], object] = lambda: None) -> Try:
    """Have one more server bring all to its end, and look whether each run was trained once and nothing is lost."""

    def follow() -> None:
        prepare()
        stand_in.take_the_place()
        _follow(RunWatch(place.runs))

    last = wait(forked(follow, place.root / "last.txt"), place.root / "last.txt", 1.5 * _SERVER_SECONDS)
    time.sleep(0.3)  # a job needs no server to come to its end
    _wait_for_jobs(place)
    problems, twice = _problems(place)
    traceback = any(ended.has_traceback for ended in (*before, last)) or "Traceback" in _logs(place)
    if traceback:
        problems.append("traceback: " + "".join(one.output[-300:] for one in (*before, last)) + _logs(place)[-300:])
    return Try(not problems and last.code == 0, 0, twice, traceback, "; ".join(problems))


def _wait_for_jobs(place: Place) -> None:
    end = time.monotonic() + 20
    while any(handle.state().is_active for handle in jobs.list_jobs(place.jobs)) and time.monotonic() < end:
        time.sleep(0.05)


def _problems(place: Place) -> tuple[list[str], bool]:
    """What is not as it should be, and whether anything was done twice."""
    found, twice = [], False
    order = queue_file.read(place.runs)
    if order.names or order.damage or order.is_held:
        found.append(f"the queue: {order}")
    here = {handle.name: handle for handle in list_runs(place.runs)}
    found += [f"{name} is gone" for name in place.told("asked") if name not in here]
    spans: list[tuple[float, float, str]] = []
    for name, handle in here.items():
        state, times = handle.state(), _times(handle)
        if len(times) > 1:
            twice = True
            found.append(f"{name} was trained {len(times)} times")
        if name in place.told("killed") and (state.status, len(times)) != ("finished", 1):
            found += [f"{name}, killed, is {state.status}"] if state.status != "crashed" else []
            continue
        if name in place.told("asked") and (state.status != "finished" or len(times) != 1):
            found.append(f"{name}, which was asked for, is {state.status} ({state.last_error})")
        elif times and state.status != "finished":
            found.append(f"{name} has begun and is {state.status} ({state.last_error})")
        if "trained already" in handle.log_tail():
            found.append(f"{name} was started twice")
        spans += [(*span, name) for span in times]
    spans.sort()
    found += [f"{a[2]} and {b[2]} trained at once" for a, b in pairwise(spans) if b[0] < a[1]]
    known = {handle.name: handle for handle in jobs.list_jobs(place.jobs)}
    found += [f"job {name} is gone" for name in place.told("job") if name not in known]
    found += [f"job {name}: {known[name].state()}" for name in known if known[name].state().status != "finished"]
    folders = list(place.jobs.iterdir()) if place.jobs.is_dir() else []
    unknown = [path.name for path in folders if path.name not in known and (path / "events.jsonl").exists()]
    found += [f"job {name} ran and nobody knows of it" for name in unknown]
    return found, twice or bool(unknown)


def _times(handle: RunHandle) -> list[tuple[float, float]]:
    """Begin and end of each training of a run."""
    path = handle.folder / stand_in.TIMES
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    begun = [float(time) for what, time in lines if what == "began"]
    ended = [float(time) for what, time in lines if what == "ended"]
    return [(at, ended[index] if index < len(ended) else float("inf")) for index, at in enumerate(begun)]


def _logs(place: Place) -> str:
    return "".join(path.read_text(errors="replace") for path in (place.root / "work").rglob("log.txt"))


def drawing(lab: Lab) -> Try:
    """kill -9 of the process that draws images: requests end, clearly; what is shown as done is whole and the same."""
    root, is_real = lab.new_runs(), lab.chance.random() < 0.1
    told, known = root / "told.json", f"drawn {is_real}"
    if known not in lab.expected:
        wait(forked(lambda: _draw(lab, root / "whole", told, None, is_real), root / "out.txt"), root / "out.txt")
        lab.expected[known] = told.read_text()
        told.unlink()
    seed = lab.chance.random()
    ended = wait(forked(lambda: _draw(lab, root / "killed", told, seed, is_real), root / "out.txt"), root / "out.txt")
    if ended.code != 0 or not told.exists():
        return Try(False, traceback=ended.has_traceback, what=ended.output[-300:] or f"exit code {ended.code}")
    expected, found = json.loads(lab.expected[known]), json.loads(told.read_text())
    problems, wrong = [], False
    for number, (whole, one) in enumerate(zip(expected["requests"], found["requests"], strict=True)):
        if one["status"] == "failed" and "died" not in (one["error"] or ""):
            problems.append(f"request {number} failed without a reason: {one['error']}")
        same = [whole["images"].get(name) == pixels for name, pixels in one["images"].items()]
        if not all(same) or (one["status"] == "finished" and one["images"] != whole["images"]):
            wrong = True
            problems.append(f"request {number} is {one['status']} with other images")
        if one["status"] not in ("finished", "failed"):
            problems.append(f"request {number} is {one['status']}")
    failed = sum(one["status"] == "failed" for one in found["requests"])
    if failed > found["kills"]:
        problems.append(f"{failed} requests failed of {found['kills']} kills")
    problems += [f"half a picture: {name}" for name in found["broken"]]
    problems += [f"left behind: {name}" for name in found["debris"]]
    return Try(not problems, 0, wrong, "Traceback" in found["log"], "; ".join(problems))


def _draw(lab: Lab, root: Path, told: Path, seed: float | None, is_real: bool) -> None:
    """Three requests, of which kills disturb some; writes down how each ended and the pixels of its images.

    seed: of the kills; None for none. is_real: with a model, else with a stand-in that paints.
    """
    root.mkdir()
    chance = random.Random(seed)
    nth = chance.randint(1, _WORKER_CALLS) if seed is not None and chance.random() < 0.6 else 0
    kills, outputs = int(nth > 0), root / "outputs"
    command = [sys.executable, "-c", _WORKER, str(is_real), str(root / "mark"), str(root), str(nth)]
    latest = 9.0 if is_real else 3.0
    moments = [] if seed is None or nth else [chance.uniform(0, latest) for _ in range(chance.randint(1, 2))]
    config = GenerateConfig(
        prompt="a cat", seed=7, steps=2, num_images=3, batch_size=1, width_px=64, height_px=64,
        base_model=BaseModelConfig(model=str(lab.model)), files=ImageFilesConfig(folder=outputs),
    )  # fmt: skip
    images = ImageQueue(root / "worker", command=command)
    numbers = [images.submit(config), images.submit(config.model_copy(update={"seed": 70}))]
    single = config.model_copy(update={"num_images": 1})
    numbers.insert(1, images.submit_grid(Grid(single, parse_axes(["seed=1,2"], single))))
    end = time.monotonic() + _SERVER_SECONDS
    for moment in sorted(moments):
        until = time.monotonic() + moment
        while time.monotonic() < until and images.is_busy:
            time.sleep(0.01)
        worker = images._worker
        if worker is not None and images.is_busy:
            with suppress(ProcessLookupError):
                os.kill(worker.process_id, signal.SIGKILL)
                kills += 1
    while images.is_busy and time.monotonic() < end:
        time.sleep(0.02)
    log = images.log_tail()
    requests = [images.get(number) for number in numbers]
    images.close()
    broken = [path.name for path in outputs.rglob("*.png") if not path.name.startswith(".") and _pixels(path) is None]
    debris = [str(path.relative_to(root)) for path in root.rglob("*.sdlora-tmp")]
    debris += [str(path.relative_to(root)) for path in (root / "worker").glob("preview*")]
    shown = []
    for one in requests:
        pictures = [*one.images, *([one.sheet] if one.sheet else [])]
        pixels = {str(index): _pixels(path) for index, path in enumerate(pictures)}
        shown.append({"status": one.status, "error": one.error, "images": pixels})
    told.write_text(json.dumps({"requests": shown, "kills": kills, "broken": broken, "debris": debris, "log": log}))


def _pixels(path: Path) -> int | None:
    """A number that stands for a picture, None for one that is cut off or not there."""
    try:
        with Image.open(path) as image:
            return hash(image.tobytes())
    except OSError:
        return None


KINDS = (server_killed, two_servers, reused_ids, clock_back, drawing)
