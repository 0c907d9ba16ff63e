"""Kinds of faults of the commands beside `train`: disturbed as in `filing`, at a change of a file or at any moment.

What each leaves is compared by what counts of it: tensors, pixels, captions, the figures of a sweep or an evaluation.
Trainings of a sweep are stand-ins (see `stand_in`), which a kill of the sweep doesn't reach.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from sdlora.adapters.files.container import content_hash
from sdlora.launch.runs import list_runs
from tests.faults import stand_in
from tests.faults.campaign import Lab, Try, run
from tests.faults.filing import Tree, Work, command, dataset, disturbed, tree
from tests.support.tiny_captioners import build_tagger

_NAME = "mine"
_NOT_COMPARED = ("seconds", "finished_at", "generated", "run", "images")
_EVALUATE = (
    "evaluate {there}/run --features latents --set num_seeds=1 --set steps=1 --set prompts.num_known=1 "
    "--set prompts.num_new=1 --set prompts.num_plain=1 --set problem_images.draws=2 --set checkpoints=[4,8]"
)
_GENERATE = "generate cat --base {root}/model --size 64x64 --steps 1 --seed 7 --batch 2 --out {there}/out"


def commands(lab: Lab) -> Try:
    """A command is killed or interrupted, or its disk is full; it is told, and the same command does the rest."""
    return disturbed(lab, lab.chance.choice(WORKS))


def _nothing(lab: Lab, there: Path) -> None:
    there.mkdir(parents=True)


def trained(lab: Lab) -> Path:
    """A run with checkpoints and its result, made once."""
    runs = lab.root / "trained"
    if not (runs / "run" / "run.safetensors").is_file():
        runs.mkdir(exist_ok=True)
        ended = run(lab.settings(runs), runs / "out.txt")
        assert ended.code == 0, ended.output
    return runs / "run"


def _with_adapter(lab: Lab, there: Path) -> None:
    there.mkdir(parents=True)
    shutil.copy(trained(lab) / "run.safetensors", there / "a.safetensors")


def _with_merged(lab: Lab, there: Path) -> None:
    """Beside the adapter another model, in whose place the merged one is put."""
    _with_adapter(lab, there)
    shutil.copytree(lab.model / "scheduler", there / "merged" / "scheduler")


def _with_tuned(lab: Lab, there: Path) -> None:
    there.mkdir(parents=True)
    tuned = lab.root / "tuned"
    if not tuned.is_dir():
        adapter = f"{trained(lab) / 'run.safetensors'}:1"
        ended = run(["merge", adapter, "--base", str(lab.model), "-o", str(tuned)], lab.root / "tuned.txt")
        assert ended.code == 0, ended.output


def _with_tagger(lab: Lab, there: Path) -> None:
    if not (lab.root / "tagger").is_dir():
        build_tagger(lab.root / "tagger")
    dataset(lab, there)


def _with_run(lab: Lab, there: Path) -> None:
    shutil.copytree(trained(lab), there / "run")


def _with_evaluation(lab: Lab, there: Path) -> None:
    once = lab.root / "evaluated"
    if not once.is_dir():
        _with_run(lab, once)
        ended = run(_line(_EVALUATE, once), lab.root / "evaluated.txt")
        assert ended.code == 0, ended.output
    shutil.copytree(once, there)


def _with_shards(lab: Lab, there: Path) -> None:
    (there / "set").mkdir(parents=True)
    files = sorted(lab.images.iterdir())
    for number in range(2):
        with tarfile.open(there / "set" / f"{number}.tar", "w") as archive:
            for path in files[number * 8 : number * 8 + 8]:
                archive.add(path, path.name)


def _with_sweep(lab: Lab, there: Path) -> None:
    there.mkdir(parents=True)
    settings = {
        "name": _NAME,
        "folder": str(there / "sweeps"),
        "train": {
            "base_model": {"model": str(lab.model)},
            "images": {"folder": str(lab.images), "resolution": 64},
            "optimization": {"steps": 4, "device": "cpu"},
            "validation": {"fraction": 0.2, "every": 2},
        },
        "vary": {"adapter.rank": [2, 4, 8]},
        "sampler": "grid",
        "workers": 2,
        "prune": "none",
    }
    (there / "sweep.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def _sweep(there: Path) -> None:
    stand_in.take_the_place()
    command("sweep {there}/sweep.yaml")(there)


def _line(line: str, there: Path) -> list[str]:
    return line.format(there=there, root=there.parent).split()


def _content(there: Path) -> Tree:
    """Of safetensors files the tensors: their metadata tell of times."""
    return {
        name: content_hash(there / name).encode() if name.endswith(".safetensors") else content
        for name, content in tree(there).items()
    }


def _model(there: Path) -> Tree:
    return {name: content for name, content in _content(there).items() if name.startswith("merged/")}


def _pictures(there: Path) -> Tree:
    """Pictures by their pixels: the same command makes further ones of the same content."""
    found = {}
    for path in there.rglob("[!.]*.png"):
        with Image.open(path) as image:
            found[hashlib.sha256(image.tobytes()).hexdigest()] = b"a picture"
    return found


def _evaluation(there: Path) -> Tree:
    report = there / "run" / "evaluation" / "evaluation.json"
    if not report.is_file():
        return {}
    told = json.loads(report.read_text(), object_hook=_without_times)
    return {"report": json.dumps(told).replace(str(there), "").encode()} | _pictures(report.parent)


def _without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _NOT_COMPARED}


def _result(there: Path) -> Tree:
    """What stands beside a run's result; side-cars tell of the file, so of more than can be compared here."""
    return {path.name: content_hash(path).encode() for path in (there / "run").glob("*.safetensors")}


def _data(there: Path) -> Tree:
    return {name: content for name, content in tree(there).items() if name.startswith("out/")}


def _trials(there: Path) -> Tree:
    """The finished sweep: a row for each of the values, each trained once, and the best of them; nothing before."""
    folder = there / "sweeps" / _NAME
    if not (folder / "best.yaml").is_file() or not (folder / "sweep.csv").is_file():
        return {}
    rows = list(csv.DictReader(io.StringIO((folder / "sweep.csv").read_text())))
    if [row["state"] for row in rows] != ["complete"] * 3:
        return {}
    begun = Counter[str]()
    for handle in list_runs(folder / "runs"):
        times = handle.folder / stand_in.TIMES
        begun[str(handle.config().adapter.rank)] += times.read_text().count("began") if times.is_file() else 0
    found = {row["adapter.rank"]: f"{row['relative_loss']} {begun[row['adapter.rank']]}".encode() for row in rows}
    return found | {name: (folder / name).read_bytes() for name in ("best.yaml", f"{_NAME}.safetensors")}


def _rooted(line: str) -> Callable[[Path], None]:
    return lambda there: command(line.replace("{root}", str(there.parents[1])))(there)


_MERGE = "merge {there}/a.safetensors:0.5 --base {root}/model -o {there}/merged"
WORKS = (
    Work("merge", _with_adapter, _rooted(_MERGE), tree=_model, at_once=True),
    Work("merge over", _with_merged, _rooted(f"{_MERGE} --force"), tree=_model, at_once=True),
    Work("resize", _with_adapter, command("resize {there}/a.safetensors --rank 1 -o {there}/b.safetensors"),
         tree=_content),
    Work("extract", _with_tuned,
         _rooted("extract --tuned {root}/tuned --base {root}/model --rank 2 -o {there}/b.safetensors"), tree=_content),
    Work("caption", _with_tagger,
         _rooted("dataset caption {there}/data --model {root}/tagger --existing append --batch-size 2")),
    Work("caption edit", dataset, command("dataset edit {there}/data shape form --apply"), done="nothing to change"),
    Work("sheet", dataset, command("dataset sheet {there}/data -o {there}/sheet.png --force")),
    Work("unpack", _with_shards, command("dataset import {there}/set --out {there}/out"), tree=_data,
         done="holds this import already"),
    Work("class images", _nothing,
         _rooted("dataset class-images --prompt cat -n 3 --steps 1 --batch 2 --out {there}/out --set "
                 "base_model.model={root}/model --set images.resolution=64")),
    Work("generate", _nothing, _rooted(f"{_GENERATE} --count 4"), tree=_pictures),
    Work("grid", _nothing, _rooted(f"{_GENERATE} --grid cfg=1,7"), tree=_pictures),
    Work("evaluate", _with_run, _rooted(_EVALUATE), tree=_evaluation),
    Work("promote", _with_evaluation, _rooted(f"{_EVALUATE} --promote"), tree=_result),
    Work("sweep", _with_sweep, _sweep, tree=_trials, at_once=True),
)  # fmt: skip

KINDS = (commands,)
