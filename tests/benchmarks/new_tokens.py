"""A new token alone, a LoRA alone, and both together (pivotal tuning): the same pictures, steps and seeds.

`python -m tests.benchmarks.new_tokens FOLDER --seeds 0,1 --steps 300` trains on `mascot` what FOLDER doesn't hold yet,
one result a file, and prints a table: the loss on held-out pictures each 50 steps, with fixed noise and by diffusers
alone, which loads the embedding by its own `load_textual_inversion`. `FOLDER/pictures.png` has the same prompts and
seeds side by side, by the base and by each run's last step.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

import sdlora
from sdlora import atomic
from sdlora.config import files
from sdlora.config.generate import GenerateConfig
from tests.benchmarks import learning_sets
from tests.benchmarks.held_out_loss import HeldOutLoss
from tests.benchmarks.learning import BASE, SIZE_PX
from tests.benchmarks.learning_recipes import PLAIN

TOKEN, WORD = "<mascot>", learning_sets.TRIGGERS["mascot"]
_NEW = f"adapter.new_tokens.{TOKEN}={{init: fox face, vectors: 4}}"
WAYS: dict[str, tuple[str, ...]] = {
    "token": ("adapter.rank=0", _NEW, "optimization.new_token_learning_rate=5e-3"),
    "lora": ("optimization.learning_rate=1e-3",),
    "both": ("optimization.learning_rate=1e-3", _NEW, "optimization.new_token_learning_rate=5e-3"),
}
PROMPTS = ("{}, reading a book", "{}, in space", "{}, with a red balloon", "{} on a bicycle")
"""Two scenes that are near what was trained, two that are not."""
_EVERY, _TILE_PX = 50, 128


def captioned(folder: Path, word: str) -> Path:
    """A copy of these pictures whose captions call the mascot by `word`."""
    copy = folder.with_name(f"{folder.name}-{word.strip('<>')}")
    if not copy.is_dir():
        shutil.copytree(folder, copy)
        for caption in copy.glob("*.txt"):
            caption.write_text(caption.read_text(encoding="utf-8").replace(WORD, word), encoding="utf-8")
    return copy


def run(root: Path, way: str, seed: int, steps: int, losses: HeldOutLoss, pictures: Path) -> dict[str, Any]:
    """Train once, measure every checkpoint, and keep the last pictures; returns the result."""
    scratch = root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    settings = [
        *(line for line in PLAIN if way != "token" or not line.startswith("adapter.")),
        *WAYS[way],
        "name=mascot",
        f"seed={seed}",
        f"images.folder={pictures}",
        f"images.cache_folder={root / 'cache'}",
        f"captions.trigger={WORD if way == 'lora' else TOKEN}",
        f"optimization.steps={steps}",
        f"outputs.folder={scratch}",
        f"outputs.checkpoint_every={_EVERY}",
        "outputs.keep_checkpoints=1000",
        "outputs.precision=fp32",
        "outputs.finish=last",
        "outputs.self_test=false",
    ]
    folder = sdlora.train(files.load(overrides=settings)).folder
    points = [{"step": 0, "loss": losses.of(None)}]
    for checkpoint in sorted(folder.glob("checkpoints/step_*")):
        written = sorted(checkpoint.glob("*.safetensors"))
        embedding = next((path for path in written if path.stem.endswith("_emb")), None)
        adapter = next((path for path in written if path != embedding), None)
        loss = losses.of(adapter, {TOKEN: embedding} if embedding else {})
        points.append({"step": int(checkpoint.name.removeprefix("step_")), "loss": loss})
    if points[-1]["step"] != steps:
        raise SystemExit(f"stopped at step {points[-1]['step']}; nothing was written")
    row = draw_row(folder, way, seed)
    row.save(root / "results" / f"{way}_{seed}_{steps}.png")
    shutil.rmtree(scratch)
    return {"way": way, "seed": seed, "steps": steps, "points": points}


def draw_row(folder: Path | None, way: str, seed: int) -> Image.Image:
    """The prompts' pictures by this run, or by the base alone, with the same seeds everywhere."""
    word = {"base": "fox face", "lora": WORD}.get(way, TOKEN)
    row = Image.new("RGB", (_TILE_PX * (len(PROMPTS) + 1), _TILE_PX), "white")
    ImageDraw.Draw(row).text((8, 56), f"{way} {seed}" if folder else way, fill="black", font_size=16)
    adapter = folder / "mascot.safetensors" if folder else None
    request = GenerateConfig(
        base_model={"model": "builtin:emoji"},
        adapters=[{"file": str(adapter)}] if adapter and adapter.exists() else [],
        embedding_folders=[str(folder)] if folder else [],
        prompt=PROMPTS[0],
        steps=20,
        guidance=4,
        compute={"precision": "fp32", "device": "cpu"},
    )
    generator = sdlora.Generator(request.base_model, compute=request.compute)
    for column, prompt in enumerate(PROMPTS, start=1):
        asked = request.model_copy(update={"prompt": prompt.format(word), "seed": column})
        (generated,) = generator.generate(asked)
        row.paste(generated.image.resize((_TILE_PX, _TILE_PX)), (_TILE_PX * column, 0))
    return row


def table(results: list[dict[str, Any]]) -> str:
    """One row a run."""
    steps = [point["step"] for point in results[0]["points"]]
    lines = ["| | seed | " + " | ".join(f"at {step}" for step in steps) + " |", "|---" * (len(steps) + 2) + "|"]
    for result in results:
        losses = " | ".join(f"{point['loss']:.4f}" for point in result["points"])
        lines.append(f"| {result['way']} | {result['seed']} | {losses} |")
    return "\n".join(lines)


def main() -> None:
    """Train and measure what is missing, then print the table and write the pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    torch.set_num_threads(1)
    root = given.folder.resolve()
    (root / "results").mkdir(parents=True, exist_ok=True)
    trained, held_out = learning_sets.prepare("mascot", root / "sets")
    losses = {word: HeldOutLoss(BASE, captioned(held_out, word), SIZE_PX) for word in (WORD, TOKEN)}
    results, rows = [], [draw_row(None, "base", 0)]
    for seed in map(int, given.seeds.split(",")):
        for way in WAYS:
            word = WORD if way == "lora" else TOKEN
            target = root / "results" / f"{way}_{seed}_{given.steps}.json"
            if not target.exists():
                result = run(root, way, seed, given.steps, losses[word], captioned(trained, word))
                atomic.write_text(target, json.dumps(result))
            results.append(json.loads(target.read_text(encoding="utf-8")))
            rows.append(Image.open(target.with_suffix(".png")))
            print(table(results[-1:]).splitlines()[-1], flush=True)
    sheet = Image.new("RGB", (rows[0].width, _TILE_PX * len(rows)), "white")
    for index, row in enumerate(rows):
        sheet.paste(row, (0, _TILE_PX * index))
    sheet.save(root / "pictures.png")
    print(table(results))


if __name__ == "__main__":
    main()
