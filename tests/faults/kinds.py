"""The kinds of faults. Each function makes one, at random, and says what became of it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import time
from pathlib import Path

from PIL import Image
from safetensors import safe_open

from sdlora.config import files
from sdlora.data.cache import Cache
from sdlora.launch.runs import TRASH, prepare
from sdlora.processes import ProcessRecord
from sdlora.runs.folder import RunFolder
from sdlora.trash import empty_folder
from tests.faults.campaign import STEPS, Ended, Lab, Try, finish, run, started, wait
from tests.support.tiny_captioners import build_tagger

_DAMAGED = (
    "state.pt", "checksums.json", "*-step_*.safetensors", "events.jsonl", "log.txt", "images.json", "best.json",
    "environment.json", "cache/*/*.safetensors",
)  # fmt: skip
_REFUSALS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "failing": errno.EIO, "read-only": errno.EROFS}


def kill(lab: Lab) -> Try:
    """kill -9 at a random moment of a training, up to three times."""
    runs, lost = lab.new_runs(), 0
    for again in range(lab.chance.randint(1, 3)):
        is_there = (runs / "run" / "config.yaml").is_file()
        arguments = ["resume", str(runs / "run")] if again and is_there else lab.settings(runs)
        with started(arguments, runs / "out.txt") as process_id:
            time.sleep(lab.moment())
            os.kill(process_id, signal.SIGKILL)
            wait(process_id, runs / "out.txt")
        if again == 0 and not is_there and not (runs / "run" / "config.yaml").is_file():
            shutil.rmtree(runs / "run", ignore_errors=True)  # killed before there was a run: begin anew
    ended = finish(lab, runs)
    return Try(ended.survived, max(lost, ended.lost_steps), ended.wrong, ended.traceback, ended.what)


def signals(lab: Lab) -> Try:
    """Ctrl-C once or ten times, a terminal that closes, a polite end, a halt for a while."""
    runs = lab.new_runs()
    number, times = lab.chance.choice(
        [(signal.SIGINT, 1), (signal.SIGINT, 10), (signal.SIGTERM, 1), (signal.SIGHUP, 1), (signal.SIGSTOP, 1)]
    )
    with started(lab.settings(runs), runs / "out.txt") as process_id:
        time.sleep(lab.moment())
        for _ in range(times):
            os.kill(process_id, number)
            time.sleep(0.02)
        if number == signal.SIGSTOP:
            time.sleep(0.5)
            os.kill(process_id, signal.SIGCONT)
        ended = wait(process_id, runs / "out.txt")
    if not (runs / "run" / "config.yaml").is_file():
        shutil.rmtree(runs / "run", ignore_errors=True)
    result = finish(lab, runs)
    what = f"{number.name} x{times}: {result.what or 'traceback'}" if result.what or ended.has_traceback else ""
    return Try(result.survived, result.lost_steps, result.wrong, result.traceback or ended.has_traceback, what)


def disk(lab: Lab) -> Try:
    """The disk refuses from some call on, as a full one does, or once, as a failing one may; then it is mended."""
    runs = lab.new_runs()
    name = lab.chance.choice(list(_REFUSALS))
    library = ctypes.CDLL(None)
    if "calls" not in lab.expected:
        lab.expected["calls"] = _count_calls(lab, runs)
        runs = lab.new_runs()
    nth = lab.chance.randint(1, int(lab.expected["calls"]))
    sticky = name != "failing"
    ended = run(
        lab.settings(runs),
        runs / "out.txt",
        lambda: library.fault_arm(str(runs / "run").encode(), ctypes.c_long(nth), _REFUSALS[name], int(sticky)),
    )
    if not (runs / "run" / "config.yaml").is_file():
        shutil.rmtree(runs / "run", ignore_errors=True)
    result = finish(lab, runs)
    problems = [result.what, "traceback" if ended.has_traceback else ""]
    if ended.code == 0 and sticky and nth < int(lab.expected["calls"]) // 2:
        problems.append("it ended as if nothing had been")
    said = "; ".join(filter(None, problems))
    return Try(
        result.survived and not (ended.code == 0 and "as if" in said),
        result.lost_steps,
        result.wrong,
        result.traceback or ended.has_traceback,
        f"{name} at call {nth}: {said} ({ended.output.strip().splitlines()[-1:]})" if said else "",
    )


def _count_calls(lab: Lab, runs: Path) -> str:
    """How many calls of an undisturbed training change files of its run."""
    library, told = ctypes.CDLL(None), runs / "calls.txt"

    def tell_at_the_end() -> None:
        leave = os._exit

        def tell(code: int) -> None:
            told.write_text(str(library.fault_count()))
            leave(code)

        os._exit = tell  # type: ignore[assignment]
        library.fault_arm(str(runs / "run").encode(), ctypes.c_long(0), 0, 0)

    run(lab.settings(runs), runs / "out.txt", tell_at_the_end)
    return told.read_text()


def flip(lab: Lab) -> Try:
    """A bit flipped, a stretch zeroed or the end cut off in one file of a finished run, which is then trained on."""
    runs = lab.new_runs()
    run(lab.settings(runs), runs / "out.txt")
    pattern = lab.chance.choice(_DAMAGED)
    found = sorted(path for path in runs.rglob(pattern) if path.is_file())
    if not found:
        return Try(True)
    damage(lab, lab.chance.choice(found))
    result = finish(
        lab, runs, expected="extended", more=("--accept-changes", "--set", f"optimization.steps={STEPS + 2}")
    )
    return Try(result.survived, 0, result.wrong, result.traceback, f"{pattern}: {result.what}" if result.what else "")


def damage(lab: Lab, path: Path) -> None:
    """Do some harm to a file."""
    content = bytearray(path.read_bytes())
    place = lab.chance.randrange(max(len(content), 1))
    match lab.chance.randrange(4) if content else 3:
        case 0:
            content[place] ^= 1 << lab.chance.randrange(8)
        case 1:
            content[place : place + 64] = bytes(len(content[place : place + 64]))
        case 2:
            del content[place:]
        case _:
            content = bytearray(lab.chance.randbytes(200))
    path.write_bytes(bytes(content))


def two_trainers(lab: Lab) -> Try:
    """Two processes go on with one run at the same time: one does, the other says why not."""
    runs = lab.new_runs()
    with started(lab.settings(runs), runs / "out.txt") as first:
        time.sleep(lab.moment())
        if not (runs / "run" / "config.yaml").is_file():
            wait(first, runs / "out.txt")
            return finish(lab, runs)
        second = run(["resume", str(runs / "run")], runs / "second.txt")
        wait(first, runs / "out.txt")
    result = finish(lab, runs)
    return Try(
        result.survived, 0, result.wrong, result.traceback or second.has_traceback,
        result.what or ("traceback" if second.has_traceback else ""),
    )  # fmt: skip


def prune(lab: Lab) -> Try:
    """The cache is emptied while a run encodes and trains."""
    runs = lab.new_runs()
    with started(lab.settings(runs), runs / "out.txt") as process_id:
        for _ in range(5):
            time.sleep(lab.moment() / 5)
            pruned = run(["cache", "prune", "--folder", str(runs / "cache"), "--keep-mib", "0"], runs / "prune.txt")
        ended = wait(process_id, runs / "out.txt")
    result = finish(lab, runs)
    went_well = ended.code == 0 and pruned.code == 0
    traceback = result.traceback or ended.has_traceback or pruned.has_traceback
    what = result.what or ("" if went_well else ended.output[-200:] + pruned.output[-200:])
    return Try(result.survived and went_well, 0, result.wrong, traceback, what)


def two_caches(lab: Lab) -> Try:
    """Two trainings fill one cache at the same time, of which one may be killed: each comes out as it does alone."""
    runs = lab.new_runs()
    second = runs / "second"
    second.mkdir()
    with (
        started(lab.settings(runs), runs / "out.txt") as one,
        started(lab.settings(runs, f"outputs.folder={second}"), second / "out.txt") as other,
    ):
        if lab.chance.random() < 0.5:
            time.sleep(lab.moment())
            os.kill(one, signal.SIGKILL)
        both = [wait(one, runs / "out.txt"), wait(other, second / "out.txt")]
    if not (runs / "run" / "config.yaml").is_file():
        shutil.rmtree(runs / "run", ignore_errors=True)
    torn: list[str] = []
    cache = Cache(runs / "cache", torn.append)
    for path in (runs / "cache").glob("*/*.safetensors"):
        cache.get(path.stem)
    results = [finish(lab, runs), finish(lab, second)]
    traceback = any(one.has_traceback for one in both) or any(result.traceback for result in results)
    what = "; ".join(filter(None, [*(result.what for result in results), *torn]))
    survived = all(result.survived for result in results) and not torn and both[1].code == 0
    if not survived and not what:
        what = both[1].output[-200:]
    lost = max(result.lost_steps for result in results)
    return Try(survived, lost, any(result.wrong for result in results), traceback, what)


def clearing(lab: Lab) -> Try:
    """While a run trains, somebody makes room: the whole cache, old checkpoints, another run and the trash go."""
    runs = lab.new_runs()
    settings = ["outputs.keep_checkpoints=2", "outputs.checkpoint_every=1"]
    with started(lab.settings(runs, *settings), runs / "out.txt") as process_id:
        for turn in range(8):
            time.sleep(lab.moment() / 5)
            _make_room(lab, runs, turn)
        ended = wait(process_id, runs / "out.txt")
    if not (runs / "run" / "config.yaml").is_file():
        shutil.rmtree(runs / "run", ignore_errors=True)
    result = finish(lab, runs)
    is_told = ended.code in (0, 2) and not ended.has_traceback
    what = result.what or ("" if ended.code == 0 else f"it ended: {ended.output[-200:]}")
    return Try(result.survived and is_told, 0, result.wrong, result.traceback or ended.has_traceback, what)


def _make_room(lab: Lab, runs: Path, turn: int) -> None:
    match lab.chance.randrange(4):
        case 0:
            shutil.rmtree(runs / "cache", ignore_errors=True)
        case 1:
            for path in list((runs / "run" / "checkpoints").glob("step_*"))[: lab.chance.randint(1, 3)]:
                shutil.rmtree(path, ignore_errors=True)
        case 2:
            Cache(runs / "cache").prune(max_bytes=0)
        case _:
            values = lab.settings(runs, f"name=other-{turn}")[2::2]
            prepare(files.load(overrides=values), runs).delete()
            empty_folder(runs / TRASH)


def inputs(lab: Lab) -> Try:
    """An image or caption is deleted, changed or added while a run trains, or between two processes of it."""
    runs = lab.new_runs()
    images = Path(shutil.copytree(lab.images, runs / "images"))
    with started(lab.settings(runs, images=images), runs / "out.txt") as process_id:
        time.sleep(lab.moment())
        victim = lab.chance.choice(sorted(images.iterdir()))
        match lab.chance.randrange(3):
            case 0:
                victim.unlink()
            case 1:
                damage(lab, victim)
            case 2:
                shutil.copy(lab.chance.choice(sorted(images.glob("*.png"))), images / "new.png")
        time.sleep(lab.moment() / 4)
        os.kill(process_id, signal.SIGTERM)
        ended = wait(process_id, runs / "out.txt")
    if not (runs / "run" / "config.yaml").is_file():
        return Try(not ended.has_traceback, traceback=ended.has_traceback)
    resumed = run(["resume", str(runs / "run")], runs / "resumed.txt")
    adapter = runs / "run" / "run.safetensors"
    from tests.integration.test_resume import weights_hash

    same = adapter.is_file() and weights_hash(adapter) == lab.expected["adapter"]
    said = resumed.code == 2 or "warning" in resumed.output + ended.output or ended.code not in (0, 130, 143)
    wrong = resumed.code == 0 and not same and not said
    traceback = ended.has_traceback or resumed.has_traceback
    what = f"{victim.name}: {resumed.output[-200:]}" if wrong or traceback else ""
    return Try(same or said, 0, wrong, traceback, what)


def clock(lab: Lab) -> Try:
    """The clock is set back by hours while a run trains."""
    runs = lab.new_runs()
    real, moved = time.time, real_after(lab.moment())
    with started(lab.settings(runs), runs / "out.txt", lambda: setattr(time, "time", moved)) as process_id:
        time.sleep(lab.moment())
        os.kill(process_id, signal.SIGKILL)
        wait(process_id, runs / "out.txt")
    assert time.time is real
    if not (runs / "run" / "config.yaml").is_file():
        shutil.rmtree(runs / "run", ignore_errors=True)
    return finish(lab, runs)


def real_after(seconds: float):  # type: ignore[no-untyped-def]
    """A clock that is set back by three hours after a while."""
    real, begun = time.time, time.monotonic()
    return lambda: real() - (3 * 3600 if time.monotonic() - begun > seconds else 0)


def process_ids(lab: Lab) -> Try:
    """After a kill, the id of the run's process is given to another program, which is no trainer and hinders none."""
    runs = lab.new_runs()
    with started(lab.settings(runs), runs / "out.txt") as process_id:
        time.sleep(lab.moment())
        os.kill(process_id, signal.SIGKILL)
        wait(process_id, runs / "out.txt")
    folder = RunFolder(runs / "run")
    if not folder.config.is_file():
        shutil.rmtree(runs / "run", ignore_errors=True)
        return finish(lab, runs)
    record = ProcessRecord.of(os.getpid())
    ProcessRecord(record.process_id, "1", record.place).write(folder.process)
    return finish(lab, runs)


def mixing(lab: Lab) -> Try:
    """kill -9 while adapters are mixed or merged: the file is whole, or it is not there."""
    runs = lab.new_runs()
    run(lab.settings(runs), runs / "out.txt")
    adapter, target = runs / "run" / "run.safetensors", runs / "mixed.safetensors"
    arguments = lab.chance.choice(
        [
            ["mix", f"{adapter}:0.5", f"{adapter}:0.25", "-o", str(target)],
            ["resize", str(adapter), "--rank", "1", "-o", str(target)],
            ["merge", f"{adapter}:0.5", "--base", str(lab.model), "-o", str(runs / "merged")],
        ]
    )
    target = Path(arguments[-1])
    with started(arguments, runs / "mix.txt") as process_id:
        time.sleep(lab.chance.uniform(0, 0.6))
        os.kill(process_id, signal.SIGKILL)
        wait(process_id, runs / "mix.txt")
    whole = not target.is_dir() or (target / "model_index.json").is_file()
    for path in target.rglob("*.safetensors") if target.is_dir() else [target] if target.exists() else []:
        with safe_open(path, framework="pt") as file:
            whole &= len(list(file.keys())) > 0
    again: Ended = run([*arguments, *(["--force"] if target.exists() else [])], runs / "again.txt")
    fine = whole and (again.code == 0 or "exists" in again.output or "No such option" in again.output)
    return Try(fine, traceback=again.has_traceback, what="" if fine else again.output[-200:])


def captioning(lab: Lab) -> Try:
    """kill -9 while a model adds to captions, up to three times: each caption is added to once."""
    runs, tagger = lab.new_runs(), lab.root / "tagger"
    if not tagger.is_dir():
        build_tagger(tagger)
    whole, killed = (Path(shutil.copytree(lab.images, runs / name)) for name in ("whole", "killed"))
    how = ["--model", str(tagger), "--existing", "append", "--batch-size", "2"]
    began = time.monotonic()
    run(["dataset", "caption", str(whole), *how], runs / "whole.txt")
    seconds, ended = time.monotonic() - began, Ended(-signal.SIGKILL, "")
    for _ in range(lab.chance.randint(1, 3)):
        with started(["dataset", "caption", str(killed), *how], runs / "out.txt") as process_id:
            time.sleep(lab.chance.uniform(0, seconds))
            os.kill(process_id, signal.SIGKILL)
            ended = wait(process_id, runs / "out.txt")
        if ended.code == 0:
            break  # all was done: once more would rightly add once more
    else:
        ended = run(["dataset", "caption", str(killed), *how], runs / "again.txt")
    wrong = ended.code == 0 and _texts(whole) != _texts(killed)
    return Try(ended.code == 0, 0, wrong, ended.has_traceback, "" if ended.code == 0 else ended.output[-200:])


def _texts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.txt")}


def generating(lab: Lab) -> Try:
    """kill -9 while images are generated: those that are there are whole, and the same as without a kill."""
    runs = lab.new_runs()
    how = ["generate", "a cat", "--base", str(lab.model), "--size", "64x64", "--steps", "2", "--count", "6",
           "--batch", "2", "--seed", "7", "--out"]  # fmt: skip
    began = time.monotonic()
    run([*how, str(runs / "whole")], runs / "whole.txt")
    with started([*how, str(runs / "killed")], runs / "out.txt") as process_id:
        time.sleep(lab.chance.uniform(0, time.monotonic() - began))
        os.kill(process_id, signal.SIGKILL)
        wait(process_id, runs / "out.txt")
    expected, left = (_pictures_by_seed(runs / name) for name in ("whole", "killed"))
    wrong = any(expected[seed] != pixels for seed, pixels in left.items())
    again = run([*how, str(runs / "killed")], runs / "again.txt")
    fine = again.code == 0 and _pictures_by_seed(runs / "killed") == expected and len(expected) == 6
    return Try(fine, 0, wrong, again.has_traceback, "" if fine else again.output[-200:])


def _pictures_by_seed(folder: Path) -> dict[str, bytes]:
    """The pixels of each picture, by the seed in what it tells of itself; one that is cut off raises."""
    found = {}
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            found[image.info["parameters"].partition("Seed: ")[2].partition(",")[0]] = image.tobytes()
    return found


KINDS = (
    kill, signals, disk, flip, two_trainers, two_caches, prune, clearing, inputs, clock, process_ids, mixing,
    captioning, generating,
)  # fmt: skip
