"""The decoder's second training: alone, on the frozen encoder's cached latents, for squared error.

The latents do not change, so the UNet may train on them at the same time.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from .data import read_images
from .files import load_checkpoint, save_checkpoint
from .optimizer import MasterWeights
from .vae import (
    BATCH_PER_WORKER,
    SAVE_EVERY,
    SCALING_FACTOR,
    build_vae,
    held_out_psnr,
    learning_rate,
    log_squared_error,
    to_signed,
)
from .workers import run_workers

LEARNING_RATE = 1e-3
LATENT_NOISE = 0.1
"""Standard deviation of noise on the latents (which have unit variance): what a UNet draws is never exact."""


def train_decoder(work: Path, num_workers: int, num_steps: int) -> None:
    """Train the decoder alone on `latents.npy`; resumes from `decoder.pt`."""
    run_workers(_train, num_workers, work, num_steps)


def _train(rank: int, num_workers: int, work: Path, num_steps: int) -> None:
    torch.manual_seed(0)
    vae = build_vae()
    state = load_checkpoint(work / "decoder.pt")
    source = state or load_checkpoint(work / "vae_joint.pt")
    assert source is not None, "cache the latents first"
    vae.load_state_dict(source["vae"])
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    vae.decoder.bfloat16()
    vae.post_quant_conv.bfloat16()
    weights = MasterWeights([vae.post_quant_conv, vae.decoder])
    first_step = 0
    if state is not None:
        weights.load_state_dict(state["weights"])
        first_step = state["step"]
    pixels, images = read_images(work)
    latents = np.load(work / "latents.npy")
    trained = np.flatnonzero([not image.held_out for image in images])
    held_out_pixels = pixels[np.flatnonzero([image.held_out for image in images])]
    pixels = np.asarray(pixels)
    began, losses = time.time(), []
    for step in range(first_step, num_steps):
        randomness = np.random.default_rng((step, rank, 1))
        chosen = np.sort(randomness.choice(trained, BATCH_PER_WORKER, replace=False))
        noise = randomness.standard_normal((BATCH_PER_WORKER, *latents.shape[1:]), np.float32)
        noisy = torch.from_numpy((latents[chosen] + LATENT_NOISE * noise) / SCALING_FACTOR)
        targets = to_signed(pixels[chosen])
        reconstructed = vae.decoder(vae.post_quant_conv(noisy.bfloat16()))
        error = reconstructed.float() - targets
        loss = log_squared_error(error) + error.abs().mean()
        loss.backward()
        weights.step(learning_rate(step, num_steps, LEARNING_RATE), num_workers)
        losses.append(float(loss.detach()))
        if rank == 0 and (step + 1) % 50 == 0:
            rate = (step + 1 - first_step) / (time.time() - began)
            now = time.strftime("%H:%M:%S")
            print(f"{now} step {step + 1}/{num_steps} loss {np.mean(losses[-50:]):.4f} {rate:.2f} steps/s")
        if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == num_steps):
            full = {name: value.float() for name, value in vae.state_dict().items()}
            save_checkpoint(work / "decoder.pt", {"vae": full, "weights": weights.state_dict(), "step": step + 1})
            copy = build_vae()
            copy.load_state_dict(full)
            print(f"  held-out PSNR {held_out_psnr(copy, held_out_pixels[::4]).mean():.2f} dB (50 of them)")
