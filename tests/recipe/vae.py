"""The VAE: encoder and decoder trained together.

Shapes: B images, C channels, H and W pixels (or latent cells, an eighth of them).
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .data import IMAGE_PX, read_images
from .files import load_checkpoint, save_checkpoint
from .optimizer import MasterWeights
from .workers import run_workers

BATCH_PER_WORKER = 4
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
KL_WEIGHT = 1e-4
OPPONENT_COLOURS = {
    "lightness": ((1, 1, 1), 1.35),
    "red-blue": ((1, 0, -1), 0.73),
    "green-magenta": ((-1, 2, -1), 0.49),
}
"""Axes of colour with their standard deviations over 8x8 averages of the images."""
SCALING_FACTOR = 0.18215
"""As in SD 1.5, so that a loader that forgets to apply it is found out."""
SAVE_EVERY = 100


def build_vae() -> AutoencoderKL:
    """An untrained narrow VAE of SD 1.5's topology: factor 8, 4 channels, four levels; no mid attention."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 96, 128),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE_PX,
        mid_block_add_attention=False,
    )


def train_autoencoder(work: Path, num_workers: int, num_steps: int) -> None:
    """Train encoder and decoder together; resumes from `vae.pt`."""
    run_workers(_train, num_workers, work, num_steps)


def reconstruction_loss(images_BCHW: Tensor, targets_BCHW: Tensor, fidelity: float) -> Tensor:
    """How far images are from their targets, both in [-1, 1].

    L1, its spatial gradients, chroma (a pixel minus its channel mean) and the opponent colours of 8x8 averages.
    As `fidelity` goes from 0 to 1, shape and part of the colour give way to `log_squared_error`.
    """
    error = (images_BCHW - targets_BCHW).float()
    horizontal = (error[..., 1:] - error[..., :-1]).abs().mean()
    vertical = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    chroma = error - error.mean(1, keepdim=True)
    shape = error.abs().mean() + 0.5 * (horizontal + vertical)
    colour = chroma.abs().mean() + avg_pool2d(chroma, 8).abs().mean()
    return (
        (1 - 0.75 * fidelity) * (shape + 3 * colour)
        + colour
        + block_error(avg_pool2d(error, 8))
        + 0.5 * fidelity * log_squared_error(error)
    )


def log_squared_error(error_BCHW: Tensor) -> Tensor:
    """Mean over images of the log of each one's mean squared error: PSNR itself, as a loss."""
    return (error_BCHW.square().mean((1, 2, 3)) + 1e-4).log().mean()


def block_error(error_BCHW: Tensor) -> Tensor:
    """Squared error along each opponent colour axis, as a share of that axis's variance, of RGB block averages.

    The green axis varies least, and most blocks are grey: absolute errors hardly reward a VAE that learns it.
    """
    axes = torch.tensor([[part / deviation for part in axis] for axis, deviation in OPPONENT_COLOURS.values()])
    return torch.einsum("ac,bchw->bahw", axes, error_BCHW).square().mean()


def psnr(images_BCHW: Tensor, targets_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, after rounding to 8 bits; inputs in [-1, 1]."""
    rounded = [((x.float().clamp(-1, 1) + 1) * 127.5).round() for x in (images_BCHW, targets_BCHW)]
    return 10 * torch.log10(255.0**2 / (rounded[0] - rounded[1]).square().mean((1, 2, 3)).clamp_min(1e-9))


def to_signed(pixels: np.ndarray) -> Tensor:
    """uint8 pixels [B, H, W, C] as float [B, C, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def moments(vae: AutoencoderKL, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the images' latents, each [B, 4, H/8, W/8]."""
    mean, log_variance = vae.quant_conv(vae.encoder(images_BCHW)).chunk(2, 1)
    return mean, log_variance.clamp(-30, 20)


def held_out_psnr(vae: AutoencoderKL, pixels: np.ndarray, batch_size: int = 20) -> Tensor:
    """PSNR of each held-out image through the VAE (latent means)."""
    values = []
    dtype = next(vae.parameters()).dtype
    with torch.no_grad():
        for start in range(0, len(pixels), batch_size):
            images = to_signed(pixels[start : start + batch_size])
            mean, _ = moments(vae, images.to(dtype))
            values.append(psnr(vae.decoder(vae.post_quant_conv(mean)), images))
    return torch.cat(values)


def learning_rate(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def _train(rank: int, num_workers: int, work: Path, num_steps: int) -> None:
    torch.manual_seed(0)
    vae = build_vae()
    vae.bfloat16()
    colour_head = torch.nn.Conv2d(4, 3, 1).bfloat16()
    weights = MasterWeights([vae, colour_head])
    first_step = 0
    state = load_checkpoint(work / "vae.pt")
    if state is not None:
        weights.load_state_dict(state["weights"])
        first_step = state["step"]
    pixels, images = read_images(work)
    trained = np.flatnonzero([not image.held_out for image in images])
    held_out_pixels = pixels[np.flatnonzero([image.held_out for image in images])]
    pixels = np.asarray(pixels)
    began, losses = time.time(), []
    for step in range(first_step, num_steps):
        randomness = np.random.default_rng((step, rank, 0))
        batch = pixels[randomness.choice(trained, BATCH_PER_WORKER, replace=False)]
        if randomness.random() < 0.5:
            batch = np.ascontiguousarray(batch[:, :, ::-1])
        targets = to_signed(batch).bfloat16()
        noise = torch.from_numpy(randomness.standard_normal((BATCH_PER_WORKER, 4, 16, 16), np.float32)).bfloat16()
        mean, log_variance = moments(vae, targets)
        latents = mean + torch.exp(0.5 * log_variance) * noise
        reconstructed = vae.decoder(vae.post_quant_conv(latents))
        fidelity = min(1.0, max(0.0, (step / num_steps - 0.2) / 0.2))
        loss = reconstruction_loss(reconstructed, targets, fidelity)
        # Without this, all three colour axes need thousands of steps more: latents must hold them linearly.
        loss = loss + block_error((avg_pool2d(targets, 8) - colour_head(latents)).float())
        mean, log_variance = mean.float(), log_variance.float()
        loss = loss + KL_WEIGHT * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss.backward()
        weights.step(learning_rate(step, num_steps, LEARNING_RATE), num_workers)
        losses.append(float(loss.detach()))
        if rank == 0 and (step + 1) % 50 == 0:
            rate = (step + 1 - first_step) / (time.time() - began)
            spread = float(mean.detach().std())
            now, recent = time.strftime("%H:%M:%S"), np.mean(losses[-50:])
            print(f"{now} step {step + 1}/{num_steps} loss {recent:.4f} latents {spread:.2f} {rate:.2f} steps/s")
        if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == num_steps):
            print(f"  held-out PSNR {held_out_psnr(vae, held_out_pixels[::4]).mean():.2f} dB (50 of them)")
            full = {name: value.float() for name, value in vae.state_dict().items()}
            save_checkpoint(work / "vae.pt", {"vae": full, "weights": weights.state_dict(), "step": step + 1})
