"""CPU seconds and memory of a training step, against the loop of diffusers' `train_text_to_image_lora.py`.

`python -m tests.benchmarks.training_step` builds a random SD 1.5 of true width (2 GB, in a temporary folder) and trains
a rank 4 adapter of the attention layers with each variant in a process of its own:

example-fp32, example-bf16   the example's loop body: VAE and text encoder in the loop, PEFT layers, AdamW
plain, fast, lean            sdlora with that `optimization.speed`, its latents and text states cached

The processes are pinned to one core and take one step each in turn, so that whatever else the machine does meets all
alike. Printed: median process CPU seconds a step, the ratio to example-bf16, peak and steady resident memory. Needs
about 3 GiB for the model and 3 to 6 GiB for each variant; `--variants plain,fast` measures fewer at once, `--size 512`,
`--batch 4`, `--all` (all+conv and the text encoder, which the example can't train) and `--model FOLDER` another task.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from tests.support.tiny_models import build

EXAMPLES = ("example-fp32", "example-bf16")
OURS = ("plain", "fast", "lean")
CAPTION = "a small house by the sea"
NUM_IMAGES = 4


def draw_images(folder: Path, size_px: int) -> None:
    """Coloured noise, since what is in the pictures costs nothing."""
    for index in range(NUM_IMAGES):
        noise = torch.randint(256, (size_px, size_px, 3), generator=torch.Generator().manual_seed(index))
        Image.fromarray(noise.byte().numpy()).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(CAPTION)


def run_example(options: argparse.Namespace, in_turn: Callable[[], bool]) -> None:
    """The example's loop, each line's work done as it does it with --rank 4 and its other defaults."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig
    from torch.nn import functional
    from transformers import CLIPTextModel, CLIPTokenizer

    dtype = torch.bfloat16 if options.worker == "example-bf16" else torch.float32
    scheduler = DDPMScheduler.from_pretrained(options.model, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(options.model, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(options.model, subfolder="text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(options.model, subfolder="vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(options.model, subfolder="unet", torch_dtype=torch.float32)
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False)
        module.to(dtype=dtype)
    unet.add_adapter(
        LoraConfig(
            r=options.rank,
            lora_alpha=options.rank,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    # Its filter is used up by the optimizer, so its clipping finds nothing to clip; so here.
    lora_layers = filter(lambda parameter: parameter.requires_grad, unet.parameters())
    optimizer = torch.optim.AdamW(lora_layers, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    pixels_BCHW = torch.rand(options.batch, 3, options.size, options.size) * 2 - 1
    tokens = tokenizer(
        [CAPTION] * options.batch, max_length=tokenizer.model_max_length, padding="max_length", return_tensors="pt"
    ).input_ids
    unet.train()
    gc.collect()
    while in_turn():
        latents_BCHW = vae.encode(pixels_BCHW.to(dtype)).latent_dist.sample() * vae.config.scaling_factor
        noise_BCHW = torch.randn_like(latents_BCHW)
        timesteps_B = torch.randint(0, scheduler.config.num_train_timesteps, (options.batch,))
        noisy_BCHW = scheduler.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        states_BTD = text_encoder(tokens, return_dict=False)[0]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            predicted_BCHW = unet(noisy_BCHW, timesteps_B, states_BTD, return_dict=False)[0]
        loss = functional.mse_loss(predicted_BCHW.float(), noise_BCHW.float(), reduction="mean")
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora_layers, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def run_sdlora(options: argparse.Namespace, in_turn: Callable[[], bool]) -> None:
    """This package's own trainer, as `sdlora train` runs it."""
    from sdlora.config import files
    from sdlora.events import EventStream
    from sdlora.training.loop.prepare import prepare
    from sdlora.training.loop.trainer import Trainer
    from sdlora.training.preflight.checks import check
    from sdlora.training.workers import Workers

    everything = ["adapter.layers=all+conv", "adapter.text_encoder=true"] if options.all else []
    config = files.load(
        overrides=[
            f"base_model.model={options.model}", f"images.folder={options.images}", f"images.resolution={options.size}",
            "images.cache=false", "adapter.layers=attention", f"adapter.rank={options.rank}", *everything,
            f"optimization.batch_size={options.batch}", "optimization.precision=bf16", "optimization.device=cpu",
            f"optimization.speed={options.worker}", "optimization.steps=1000",
        ]
    )  # fmt: skip
    images = check(config)
    events, workers = EventStream([]), Workers("cpu")
    made = prepare(config, images, events, workers)
    trainer = Trainer(config, 1000, made.adapter, made.batches, made.loss_function, events, workers)
    after_step: Callable[[], Literal["go on", "stop"]] = lambda: "go on" if in_turn() else "stop"  # noqa: E731
    if in_turn():
        trainer.run(after_step)


def work(options: argparse.Namespace) -> None:
    """A variant's process: for each line on stdin one step, then a line with its CPU seconds and the memory."""
    channel, sys.stdout = sys.stdout, sys.stderr
    began: float | None = None

    def in_turn() -> bool:
        nonlocal began
        ended = time.process_time()
        print(json.dumps({"seconds": began and ended - began, **memory_gib()}), file=channel, flush=True)
        if not sys.stdin.readline().strip():
            return False
        began = time.process_time()
        return True

    (run_example if options.worker in EXAMPLES else run_sdlora)(options, in_turn)


def memory_gib() -> dict[str, float]:
    """Resident memory of this process: the most so far, and now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.startswith(("VmHWM", "VmRSS"))}
    return {"peak": found["VmHWM"], "steady": found["VmRSS"]}


def measure(options: argparse.Namespace, variants: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Start every variant, step them in turn, and collect what they tell."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.training_step",
        "--model",
        options.model,
        "--images",
        str(folder),
    ]
    command += ["--size", str(options.size), "--batch", str(options.batch), "--rank", str(options.rank)]
    command += ["--all"] if options.all else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    processes = {
        variant: subprocess.Popen(
            [*command, "--worker", variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, {options.core}),
        )
        for variant in variants
    }
    told: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}

    def hear(variant: str) -> None:
        assert processes[variant].stdout is not None
        line = processes[variant].stdout.readline()
        if not line:
            raise SystemExit(f"{variant} ended before its time, see above")
        told[variant].append(json.loads(line))

    try:
        for variant in variants:
            hear(variant)
        for step in range(options.warm_up + options.steps):
            for variant, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                hear(variant)
            seconds = ", ".join(f"{variant} {told[variant][-1]['seconds']:.2f}" for variant in variants)
            print(f"step {step + 1}: {seconds}", flush=True)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {
        variant: {
            "seconds": statistics.median(one["seconds"] for one in lines[1 + options.warm_up :]),
            "peak": lines[-1]["peak"],
            "steady": lines[-1]["steady"],
        }
        for variant, lines in told.items()
    }


def main() -> None:
    """Print one row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join((*EXAMPLES, *OURS)))
    parser.add_argument("--model", help="a diffusers folder of SD 1.x instead of random weights")
    parser.add_argument("--size", type=int, default=256, help="edge of the images in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--all", action="store_true", help="layers all+conv and the text encoder; ours only")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before those")
    parser.add_argument("--core", type=int, default=0, help="the core that all are pinned to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--images", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    variants = [one for one in options.variants.split(",") if not (options.all and one in EXAMPLES)]
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        draw_images(images, options.size)
        options.model = options.model or str(build("sd1", Path(folder, "model"), width="true", dtype=torch.bfloat16))
        found = measure(options, variants, images)
    base = "example-bf16" if "example-bf16" in found else variants[0]
    print(f"| variant | CPU s a step | speed against {base} | peak RSS, GiB | steady |\n|---|---|---|---|---|")
    for variant, row in found.items():
        ratio = found[base]["seconds"] / row["seconds"]
        print(f"| {variant} | {row['seconds']:.2f} | {ratio:.2f} | {row['peak']:.2f} | {row['steady']:.2f} |")


if __name__ == "__main__":
    main()
