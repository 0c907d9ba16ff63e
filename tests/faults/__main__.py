"""`python -m tests.faults --minutes 20`: tries faults for so long and prints how many were survived."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

_FOLDER = "SDLORA_FAULTS_FOLDER"
"""Environment variable: the campaign's folder, once the failing disk is loaded."""


def main() -> None:
    """Parse, prepare, try, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds, with commas between")
    parser.add_argument("--evidence", type=Path, help="keep the folders of tries that went wrong here")
    arguments = parser.parse_args()
    if _FOLDER not in os.environ:
        _begin_again(Path(tempfile.mkdtemp(prefix="sdlora-faults-")))
    folder = Path(os.environ[_FOLDER])
    try:
        kinds = [name for name in arguments.only.split(",") if name]
        _campaign(folder, arguments.minutes, arguments.seed, kinds, arguments.evidence)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _begin_again(folder: Path) -> NoReturn:
    """With the failing disk loaded: a library can't get between a program and its calls later on."""
    library = folder / "failing_disk.so"
    source = Path(__file__).with_name("failing_disk.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), _FOLDER: str(folder), "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "tests.faults", *sys.argv[1:]], environment)


def _campaign(root: Path, minutes: float, seed: int, only: list[str], evidence: Path | None) -> None:
    from tests.faults import commanding, filing, serving
    from tests.faults import kinds as trainings
    from tests.faults.campaign import Lab, Try
    from tests.support.tiny_models import build

    lab = Lab(root, build("sd1", root / "model"), _pictures(root / "images"), random.Random(seed))
    known = (*trainings.KINDS, *serving.KINDS, *filing.KINDS, *commanding.KINDS)
    kinds = [kind for kind in known if not only or kind.__name__ in only]
    if not kinds:
        sys.exit(f"--only names none of {', '.join(kind.__name__ for kind in known)}")
    if any(kind in trainings.KINDS for kind in kinds):
        lab.learn()
        print(f"undisturbed: {lab.seconds:.1f} s", flush=True)
    tries: dict[str, list[Try]] = {kind.__name__: [] for kind in kinds}
    deadline, turn = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < deadline:
        kind = kinds[turn % len(kinds)]
        turn += 1
        result = kind(lab)
        tries[kind.__name__].append(result)
        if result.what or not result.survived:
            print(f"{kind.__name__}: {result}", flush=True)
        if evidence is not None and (result.wrong or result.traceback):
            shutil.copytree(root / f"runs-{lab.number}", evidence / f"{kind.__name__}-{seed}-{lab.number}")
    print(f"{'kind':<14}{'tries':>7}{'survived':>10}{'lost steps':>12}{'silently wrong':>16}{'tracebacks':>12}")
    for name, found in tries.items():
        lost = max((one.lost_steps for one in found), default=0)
        figures = (len(found), sum(one.survived for one in found), f"at most {lost}", sum(one.wrong for one in found))
        print(f"{name:<14}{figures[0]:>7}{figures[1]:>10}{figures[2]:>12}{figures[3]:>16}"
              f"{sum(one.traceback for one in found):>12}")  # fmt: skip


def _pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    for index in range(10):
        Image.new("RGB", (96, 64 + 32 * (index % 2)), (20 * index, 60, 255 - 20 * index)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"shape {index}, on blue", encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
