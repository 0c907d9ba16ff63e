"""A run with an evaluation as `sdlora evaluate` leaves them behind, made without a model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from sdlora.adapters.files.container import content_hash
from sdlora.evaluation.findings import Problem
from sdlora.evaluation.report import (
    Copy,
    EvaluatedImage,
    Evaluation,
    ProblemReport,
    Recommendation,
    Scores,
    WeightAdvice,
)
from sdlora.events import CheckpointSaved, Progress, RunFinished
from sdlora.launch.runs import RunHandle
from sdlora.processes import ProcessRecord
from tests.support.told_runs import made, started, step, told

STEPS = (10, 20)
PROMPTS = (("known", "a cat, ohwx"), ("plain", "a castle on a hill"))


def trained_run(runs_folder: Path, name: str = "cats") -> RunHandle:
    """A finished run of 20 steps with two checkpoints, the last of which is its result."""
    run = made(runs_folder, name)
    told(run, started(20), *(step(number) for number in range(1, 21)))
    for number in STEPS:
        file = run.files.checkpoint(number) / f"{name}-step_{number:06d}.safetensors"
        file.parent.mkdir(parents=True)
        _adapter(file, number)
        told(run, CheckpointSaved(step=number, path=str(file.parent)))
    _adapter(run.files.adapter(name), STEPS[-1])
    over = RunFinished(step=20, reason="completed", adapter_path=str(run.files.adapter(name)), seconds=1.0)
    told(run, over)
    return run


def evaluate(run: RunHandle, training_image: Path) -> Evaluation:
    """Write a report that recommends step 10, with its pictures: step 20 has a near copy of a training image."""
    images = []
    for label, red in (("base", 40), ("step 10", 120), ("step 20", 200)):
        folder = run.files.evaluation / "images" / label.replace(" ", "_")
        folder.mkdir(parents=True)
        for prompt in range(len(PROMPTS)):
            file = folder / f"{prompt}-seed0.png"
            Image.new("RGB", (64, 64), (red, 80, 120)).save(file)
            images.append(EvaluatedImage(label, prompt, 0, file.relative_to(run.folder).as_posix()))
    copied = Copy(str(run.folder / images[-2].file), training_image.name, 0.4)
    found = Evaluation(
        run=run.folder,
        features="latents",
        base=_scores("base", 0.2, 1.0),
        checkpoints=(
            _scores("step 10", 0.7, 0.9, run.files.checkpoint(10)),
            _scores("step 20", 0.8, 0.6, run.files.checkpoint(20), (copied,)),
        ),
        recommendation=Recommendation(
            "step 10", 10, "gone", ("likeness is the best", "no near copies"), ("from step 20 on one image is a copy",)
        ),
        prompts=tuple({"kind": kind, "prompt": prompt, "bare": prompt} for kind, prompt in PROMPTS),
        num_seeds=1,
        weight_advice=WeightAdvice(
            0.8, "weight 0.8: likeness within 1.0% of the best", (_scores("weight 0.8", 0.69, 0.95),)
        ),
        problem_images=ProblemReport(
            (Problem("mislabelled", training_image.name, 3.2, "its caption fits badly"),),
            {},
            ("base", "step 10"),
            2.0,
            {training_image.name: str(training_image)},
        ),
        seconds={"generating": 61.0},
        finished_at=time.time(),
        images=tuple(images),
    )
    found.write()
    return found


def running_job(jobs: Path, run: RunHandle, process_id: int) -> None:
    """A job in which a process evaluates a run, as far as anyone can tell from its folder."""
    folder = jobs / "20261129-120000-evaluate"
    folder.mkdir(parents=True)
    ProcessRecord.of(process_id).write(folder / "process.json")
    told = Progress(stage="generating images", done=3, total=8)
    (folder / "events.jsonl").write_text(told.model_dump_json() + "\n", encoding="utf-8")
    about = {"arguments": ["evaluate", str(run.folder)], "created_at": time.time()}
    (folder / "job.json").write_text(json.dumps(about), encoding="utf-8")


def _adapter(path: Path, step: int) -> None:
    metadata = {"ss_steps": str(step), "sshs_model_hash": "", "ss_network_module": "networks.lora"}
    save_file({"lora_unet_x.lora_down.weight": np.full((1, 1), step, np.float32)}, path, metadata)


def _scores(
    label: str, likeness: float, adherence: float, checkpoint: Path | None = None, copies: tuple[Copy, ...] = ()
) -> Scores:
    file = next(checkpoint.glob("*.safetensors")) if checkpoint else None
    return Scores(
        label=label,
        step=int(label.split()[1]) if file else None,
        file=str(file) if file else None,
        num_images=1,
        likeness=likeness,
        adherence=0.3 * adherence,
        adherence_of_base=adherence,
        diversity=None,
        leak=0.1,
        saturation=0.3,
        contrast=0.2,
        burned=0,
        copies=copies,
        content=content_hash(file) if file else None,
    )
