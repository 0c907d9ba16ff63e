"""Does `sdlora evaluate` find what was planted? Runs on builtin:emoji with known faults, and the table found/missed.

`python -m tests.benchmarks.evaluation FOLDER` trains in FOLDER (what is there already is not trained again) and prints:

- over-trained: six pictures, far too many steps. Copies must be flagged at the end, and an earlier checkpoint named.
- planted, seed by seed: one caption that belongs to another picture, one picture of another kind. Both should be among
  the top 3 problem images; so far only the picture is (docs/guides/evaluate.md has the table).
- characters: mascot and robot in one adapter, once captioned rightly, once with half of the robots under the mascot's
  name. The mascot's trigger should leak in the second and in it alone; so far nothing leaks in the first, and the
  second is missed: whose images are whose is told by captions, so robots called mascots count as what both share.
- cost: evaluating against generating the same images plainly, and problem images against the training.

Half an hour on two cores with five seeds; --seeds 1 is a start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sdlora.evaluation.findings import Interval
from sdlora.evaluation.report import TriggerPair
from tests.benchmarks import learning_sets
from tests.benchmarks.learning_sets import TRIGGERS

CHARACTERS = ("mascot", "robot")
SAMPLES = Path(__file__).parents[2] / "sample_images"
FEW = ("bell", "fish", "guitar", "rocket", "teapot", "tree")
FOREIGN = "foreign"
TOP = 3


def train(name: str, images: Path, trigger: str, root: Path, *settings: str) -> Path:
    """The folder of a run, trained unless its result is there."""
    run = root / "runs" / name
    if (run / f"{name}.safetensors").is_file():
        return run
    shutil.rmtree(run, ignore_errors=True)
    fixed = [f"name={name}", f"images.folder={images}", "previews.prompts=[]"]
    fixed += [f"captions.trigger={trigger}"] if trigger else []
    fixed += [f"outputs.folder={root / 'runs'}", "outputs.self_test=false", "outputs.keep_checkpoints=20"]
    _sdlora(root, "train", "--preset", "demo.yaml", *(f"--set={one}" for one in (*fixed, *settings)))
    return run


def over_trained(root: Path) -> Path:
    """A run of six pictures, with a checkpoint at each fifty of its 300 steps."""
    images = root / "few"
    images.mkdir(parents=True, exist_ok=True)
    for name in FEW:
        for suffix in (".png", ".txt"):
            shutil.copy(SAMPLES / "blueprint" / f"{name}{suffix}", images)
    settings = ("optimization.steps=300", "optimization.batch_size=4", "optimization.schedule=constant")
    more = ("validation.fraction=0", "outputs.checkpoint_every=50")
    return train("over", images, "blueprint style", root, *settings, *more)


def planted(root: Path, seed: int) -> tuple[Path, str]:
    """A run with a wrong caption and a foreign picture, and the name of the picture whose caption is wrong."""
    draws, images = random.Random(seed), root / f"planted-{seed}"
    pictures = sorted((SAMPLES / "blueprint").glob("*.png"))
    wrong, other = draws.sample(pictures, 2)
    foreign = draws.choice(sorted((SAMPLES / "mascot").glob("*.png")))
    if not images.is_dir():
        shutil.copytree(SAMPLES / "blueprint", images)
        shutil.copy(other.with_suffix(".txt"), images / f"{wrong.stem}.txt")
        shutil.copy(foreign, images / f"{FOREIGN}.png")
        (images / f"{FOREIGN}.txt").write_text("a penguin, blueprint style\n", encoding="utf-8")
    settings = (f"seed={seed}", "validation.fraction=0", "outputs.checkpoint_every=100")
    return train(f"planted-{seed}", images, "blueprint style", root, *settings), wrong.name


def characters(root: Path, *, confused: bool) -> Path:
    """A run of two characters; confused: every other robot is called by the mascot's name."""
    name = "confused" if confused else "characters"
    images = root / name
    if not images.is_dir():
        for kind in CHARACTERS:
            trained, _ = learning_sets.prepare(kind, root / "sets")
            for place, picture in enumerate(sorted(trained.glob("*.png"))):
                text = picture.with_suffix(".txt").read_text(encoding="utf-8")
                if confused and kind == "robot" and place % 2:
                    text = text.replace(TRIGGERS["robot"], TRIGGERS["mascot"])
                images.mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, images / f"{kind}-{picture.name}")
                (images / f"{kind}-{picture.stem}.txt").write_text(text, encoding="utf-8")
    settings = ("captions.trigger=null", "validation.fraction=0", "optimization.steps=300")
    return train(name, images, "", root, *settings)


def evaluate(run: Path, root: Path, *settings: str) -> tuple[dict[str, Any], float]:
    """The report of an evaluation, and its seconds."""
    began = time.monotonic()
    _sdlora(root, "evaluate", str(run), *(f"--set={one}" for one in settings))
    seconds = time.monotonic() - began
    return json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8")), seconds


def _sdlora(root: Path, *arguments: str) -> None:
    environment = {**os.environ, "SDLORA_CACHE": str(root / "cache")}
    subprocess.run([sys.executable, "-m", "sdlora", *arguments], check=True, env=environment)


def training_seconds(run: Path) -> float:
    """How long the training took."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return next(one["seconds"] for one in map(json.loads, reversed(lines)) if one["kind"] == "run_finished")


def check_over_trained(run: Path, root: Path) -> None:
    """Print whether copies are flagged at the end and an earlier checkpoint is named, and what the evaluation cost."""
    report, seconds = evaluate(run, root, "guidance=4", "steps=20")
    *_, last = report["checkpoints"]
    step = report["recommendation"]["step"]
    print(f"copies at step {last['step']}: {_verdict(len(last['copies']) > 0)} ({len(last['copies'])} images)")
    print(f"an earlier checkpoint recommended: {_verdict(step < last['step'])} (step {step})")
    spent = report["seconds"]
    share = spent["comparing"] / max(spent["generating"], 1e-9)
    print(
        f"{seconds:.0f} s: generating {spent['generating']:.0f} s, comparing {spent['comparing']:.0f} s ({share:.1%})"
    )


def check_planted(run: Path, wrong: str, root: Path) -> None:
    """Print whether both faults are among the top 3 problem images, and what finding them cost."""
    few = ("prompts.num_known=1", "prompts.num_new=0", "prompts.num_plain=0", "num_seeds=1", "steps=4")
    report, _ = evaluate(run, root, *few)
    problems = report["problem_images"]
    top = [(one["name"], one["kind"]) for one in problems["worst"][:TOP]]
    names = [name for name, _ in top]
    cost = problems["seconds"] / training_seconds(run)
    # A picture that is hard anyway may come up by chance: only its own kind of trouble shows that it was understood.
    for kind, name in (("mislabelled", wrong), ("unlike the others", f"{FOREIGN}.png")):
        listed = [one["name"] for one in problems["by_kind"][kind]]
        place = listed.index(name) + 1 if name in listed else None
        print(f"{run.name}: {name}: {_verdict(name in names)} among the top {TOP}; as {kind}: place {place or 'none'}")
    print(f"{run.name}: top {TOP}: {top}; {problems['seconds']:.0f} s, {cost:.1%} of the training")


def check_characters(root: Path) -> None:
    """Print whether the mascot's trigger leaks where it should, and nowhere else."""
    named = f"characters.triggers=[{', '.join(TRIGGERS[kind] for kind in CHARACTERS)}]"
    few = ("prompts.num_plain=0", "num_seeds=1", "steps=15", "guidance=4", "problem_images.enabled=false")
    for confused in (False, True):
        run = characters(root, confused=confused)
        report, _ = evaluate(run, root, "characters.enabled=true", named, *few)
        for pair in (TriggerPair(**{**one, "brought": one["brought"] and Interval(**one["brought"])})
                     for one in report["characters"]):  # fmt: skip
            expected = confused and pair.asked == TRIGGERS["mascot"]
            print(f"{run.name}: {pair.sentence}: {'as planted' if pair.leaks == expected else 'NOT as planted'}")


def _verdict(is_found: bool) -> str:
    return "found" if is_found else "MISSED"


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only-train", action="store_true")
    parser.add_argument("--only-characters", action="store_true")
    given = parser.parse_args()
    root = given.folder.resolve()
    root.mkdir(parents=True, exist_ok=True)
    if given.only_characters:
        check_characters(root)
        return
    over = over_trained(root)
    runs = [planted(root, seed) for seed in range(given.seeds)]
    if given.only_train:
        return
    check_over_trained(over, root)
    for run, wrong in runs:
        check_planted(run, wrong, root)
    check_characters(root)


if __name__ == "__main__":
    main()
