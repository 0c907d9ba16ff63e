"""Eight images with eight sets of adapters in one batch, against eight calls that switch adapters in between.

`python -m tests.benchmarks.mixed_batch` makes eight random adapters for builtin:emoji, generates eight images at its
own size in both ways (first the batch, then the calls, then again in turn), and prints CPU seconds, their ratio and how
far the pictures of the batch are from those that their own settings give alone. The same loaded base model and adapters
serve both, read before the clock starts. `--model FOLDER --size 256` takes another base model, `--precision fp32`
another number type.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch

from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.generation.generate import Generator
from sdlora.generation.generated import GeneratedImage
from tests.support.adapter_files import ATTENTION, TEXT, random_adapter

ROWS = 8


def requests(options: argparse.Namespace, folder: Path) -> list[GenerateConfig]:
    """Eight requests that differ in prompt, seed, adapter and weight."""
    rows = []
    for index in range(ROWS):
        file = random_adapter(
            options.model, folder / f"{index}.safetensors", layers=f"{ATTENTION}|{TEXT}", rank=options.rank, seed=index
        )
        rows.append(
            GenerateConfig(
                base_model={"model": options.model},
                adapters=[UsedAdapter(file=str(file), weight=0.5 + index / ROWS)],
                prompt=f"a cat face, number {index}",
                seed=index,
                steps=options.steps,
                width_px=options.size,
                height_px=options.size,
                guidance=4,
                batch_size=ROWS,
                compute={"precision": options.precision, "device": "cpu"},
            )
        )
    return rows


def timed(generate: Callable[[], list[GeneratedImage]]) -> tuple[float, list[GeneratedImage]]:
    """CPU seconds of all threads, and what was generated."""
    began = time.process_time()
    images = generate()
    return time.process_time() - began, images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:emoji")
    parser.add_argument("--size", type=int)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = requests(options, Path(folder))
        generator = Generator(rows[0].base_model, rows[0].compute)
        list(generator.generate_rows([row.model_copy(update={"steps": 1}) for row in rows]))  # reads the adapters
        times: dict[str, list[float]] = {"one batch": [], "eight calls": []}
        for _ in range(options.rounds):
            batch_seconds, batch = timed(lambda: list(generator.generate_rows(rows)))
            call_seconds, _ = timed(lambda: [image for row in rows for image in generator.generate(row)])
            times["one batch"].append(batch_seconds)
            times["eight calls"].append(call_seconds)
        alone = [image for one in batch for image in generator.generate(one.config)]
    difference = max(
        int(numpy.abs(numpy.asarray(one.image).astype(int) - numpy.asarray(other.image)).max())
        for one, other in zip(batch, alone, strict=True)
    )
    width_px, height_px = batch[0].image.size
    print(
        f"{options.model}, {width_px}x{height_px} px, {options.steps} steps, "
        f"{generator.bundle.dtype}, rank {options.rank}"
    )
    for name, seconds in times.items():
        print(f"{name}: {min(seconds):.2f} CPU seconds at best, {sorted(seconds)[len(seconds) // 2]:.2f} in the middle")
    print(f"ratio of the best: {min(times['one batch']) / min(times['eight calls']):.3f}")
    print(f"largest difference from the same pictures alone: {difference} of 255 ({torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
