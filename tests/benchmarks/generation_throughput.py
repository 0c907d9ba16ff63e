"""Images a second and memory against diffusers' pipeline with the adapter loaded by load_lora_weights, in bf16.

`python -m tests.benchmarks.generation_throughput` builds a random SD 1.5 of true width (2 GB, in a temporary folder)
and a rank 16 adapter, and generates 256x256 px images with both: same sampler (DPM++ 2M Karras), 20 steps, guidance 7,
same batch and number of threads. Each runs in a process of its own, several times in turn. It prints CPU seconds an
image, without loading and without a first batch of 4 steps, and the whole process's peak memory. Needs 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.support.adapter_files import ATTENTION, TEXT, random_adapter
from tests.support.tiny_models import build

PROMPT, NEGATIVE = "a lighthouse at night, oil painting", "blurry, low quality"
SIZE_PX, GUIDANCE, WARM_UP_STEPS = 256, 7.0, 4


def with_diffusers(model: str, adapter: str, batch: int) -> Callable[[int, int], None]:
    """diffusers' pipeline as its documentation uses it."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.load_lora_weights(adapter, adapter_name="benchmark")

    def generate(seed: int, steps: int) -> None:
        generators = [torch.Generator().manual_seed(seed + index) for index in range(batch)]
        pipeline(
            [PROMPT] * batch,
            negative_prompt=[NEGATIVE] * batch,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            width=SIZE_PX,
            height=SIZE_PX,
            generator=generators,
        )

    return generate


def with_sdlora(model: str, adapter: str, batch: int) -> Callable[[int, int], None]:
    """This package's generator with its own defaults."""
    from sdlora import GenerateConfig, Generator

    config = GenerateConfig(
        base_model={"model": model},
        adapters=[{"file": adapter}],
        prompt=PROMPT,
        negative=NEGATIVE,
        guidance=GUIDANCE,
        width_px=SIZE_PX,
        height_px=SIZE_PX,
        num_images=batch,
        batch_size=batch,
        compute={"precision": "bf16", "device": "cpu"},
    )
    generator = Generator(config.base_model, config.compute)

    def generate(seed: int, steps: int) -> None:
        for _ in generator.generate(config.model_copy(update={"seed": seed, "steps": steps})):
            pass

    return generate


WORKERS = {"diffusers": with_diffusers, "sdlora": with_sdlora}


def work(options: argparse.Namespace) -> None:
    """One process: load, generate a little, then generate on the clock; prints JSON."""
    generate = WORKERS[options.worker](options.model, options.adapter, options.batch)
    generate(0, WARM_UP_STEPS)
    began = time.process_time()
    for number in range(options.batches):
        generate(1 + number * options.batch, options.steps)
    seconds = (time.process_time() - began) / (options.batches * options.batch)
    print(json.dumps({"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", help="A folder built before; by default one is built.")
    parser.add_argument("--adapter", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(build("sd1", Path(folder) / "sd15", width="true", dtype=torch.bfloat16))
        layers, file = f"{ATTENTION}|{TEXT}", Path(folder) / "adapter.safetensors"
        random_adapter(model, file, layers=layers, rank=16, size=0.05, dtype=torch.float16)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in WORKERS}
        for _ in range(options.rounds):
            for name in WORKERS:
                command = [sys.executable, "-m", "tests.benchmarks.generation_throughput", "--worker", name]
                command += ["--model", model, "--adapter", str(file), "--steps", str(options.steps)]
                command += ["--batch", str(options.batch), "--batches", str(options.batches)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(
                    f"{name}: {found[name][-1]['seconds']:.2f} CPU seconds an image, {found[name][-1]['gib']:.2f} GiB"
                )
    best = {name: min(one["seconds"] for one in runs) for name, runs in found.items()}
    most = {name: max(one["gib"] for one in runs) for name, runs in found.items()}
    print(
        f"SD 1.5, {SIZE_PX} px, {options.steps} steps, batch {options.batch}, bf16, {torch.get_num_threads()} threads"
    )
    print(f"images a second: {best['diffusers'] / best['sdlora']:.2f} times those of diffusers")
    print(f"peak memory: {most['sdlora']:.2f} GiB, diffusers {most['diffusers']:.2f} GiB")


if __name__ == "__main__":
    main()
