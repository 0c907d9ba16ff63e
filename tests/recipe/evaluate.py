"""The figures of the model card, measured on the exported folder: VAE fidelity and prompt following.

The fp16-stored weights are loaded as a user would load them and computed in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from .data import BENCHMARK_STYLES, caption, read_images, read_names
from .latents import encode
from .vae import held_out_psnr

GUIDANCE = 4.0
NUM_STEPS = 25
TOP = 5
BATCH_SIZE = 20
PSNR_BAR_DB = 28.0
NAMED_BAR = 0.60


@dataclass(frozen=True)
class Prompted:
    """One picture: the name and style asked for, and that name's rank among its nearest training images."""

    name: str
    style: str
    rank: int


def evaluate(work: Path, folder: Path, sheet: Path | None = None, every: int = 1) -> dict[str, float]:
    """Print and return the figures. `sheet`: where the contact sheet goes. `every`: use each nth name only."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pixels, images = read_images(work)
    held_out = np.flatnonzero([image.held_out for image in images])
    psnr_N = held_out_psnr(pipeline.vae, pixels[held_out])
    squared = 255.0**2 / 10 ** (psnr_N / 10)
    overall = float(10 * torch.log10(255.0**2 / squared.mean()))
    print(f"VAE: PSNR {psnr_N.mean():.2f} dB, mean of {len(held_out)} held-out images (bar {PSNR_BAR_DB})")
    print(f"VAE: PSNR {overall:.2f} dB of the mean squared error over all of them")
    prompted, pictures = _prompt_all(pipeline, pixels, work, every)
    figures = {"psnr_db": float(psnr_N.mean()), "psnr_overall_db": overall}
    for style in (*BENCHMARK_STYLES, "all"):
        ranks = np.array([each.rank for each in prompted if style in (each.style, "all")])
        first, near = float((ranks == 1).mean()), float((ranks <= TOP).mean())
        figures |= {f"top1_{style}": first, f"top{TOP}_{style}": near}
        print(f"{style}: {len(ranks)} prompts, top 1 {first:.1%}, top {TOP} {near:.1%} (bar {NAMED_BAR:.0%})")
    missed = sorted({each.name for each in prompted if each.rank > TOP})
    print("missed in at least one style:", ", ".join(missed))
    if sheet:
        contact_sheet(pictures, sheet)
    return figures


def contact_sheet(pictures: np.ndarray, path: Path, columns: int = 15, size_px: int = 64) -> None:
    """Save uint8 pictures [N, H, W, 3] as one PNG grid."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * size_px, rows * size_px), "white")
    for index, picture in enumerate(pictures):
        small = Image.fromarray(picture).resize((size_px, size_px), Image.Resampling.LANCZOS)
        sheet.paste(small, (index % columns * size_px, index // columns * size_px))
    sheet.quantize(128).save(path, optimize=True)


def _prompt_all(
    pipeline: StableDiffusionPipeline, pixels: np.ndarray, work: Path, every: int
) -> tuple[list[Prompted], np.ndarray]:
    """Draw each benchmark name in each style; returns ranks, and pictures uint8 [N, 128, 128, 3]."""
    _, images = read_images(work)
    names = [name for name in read_names() if name.tier == "benchmark"][::every]
    prompted, pictures = [], []
    for style in BENCHMARK_STYLES:
        chosen = np.array([index for index, image in enumerate(images) if image.style == style and image.captions])
        known = torch.from_numpy(encode(pipeline.vae, pixels[chosen])) * pipeline.vae.config.scaling_factor
        latents = generate(pipeline, [caption(name.captions[0], style) for name in names])
        for name, latent in zip(names, latents, strict=True):
            order = (known - latent).square().mean((1, 2, 3)).argsort().tolist()
            rank = 1 + [images[chosen[index]].name for index in order].index(name.icon)
            prompted.append(Prompted(name.icon, style, rank))
        pictures.append(decode(pipeline, latents))
    return prompted, np.concatenate(pictures)


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int = 0) -> Tensor:
    """Latents [N, 4, 16, 16] of unit variance, one for each prompt, each from its own seed."""
    batches = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(batch))]
        result = pipeline(
            batch,
            height=128,
            width=128,
            guidance_scale=GUIDANCE,
            num_inference_steps=NUM_STEPS,
            generator=generators,
            output_type="latent",
        )
        batches.append(result.images)
    return torch.cat(batches)


def decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> np.ndarray:
    """Pictures of unit-variance latents, uint8 [N, 128, 128, 3]."""
    with torch.no_grad():
        signed = torch.cat(
            [
                pipeline.vae.decode(part / pipeline.vae.config.scaling_factor).sample
                for part in latents.split(BATCH_SIZE)
            ]
        )
    return ((signed.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
