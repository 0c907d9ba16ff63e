"""Latents of the training images, and the change of units that gives them zero mean and SD 1.5's spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .data import read_images
from .files import load_checkpoint, save_checkpoint, write_array
from .vae import SCALING_FACTOR, build_vae, moments, to_signed

BATCH_SIZE = 32


def cache_latents(work: Path) -> None:
    """Write the normalised VAE (`vae_joint.pt`) and `latents.npy`: [N, 4, 16, 16] of unit variance, all images."""
    if (work / "latents.npy").exists():
        return
    pixels, images = read_images(work)
    state = load_checkpoint(work / "vae.pt")
    assert state is not None, "train the autoencoder first"
    vae = build_vae()
    vae.load_state_dict(state["vae"])
    latents = encode(vae, pixels)
    trained = torch.from_numpy(latents[[not image.held_out for image in images]])
    mean_C, deviation_C = trained.mean((0, 2, 3)), trained.std((0, 2, 3))
    change_units(vae, mean_C, deviation_C * SCALING_FACTOR)
    save_checkpoint(work / "vae_joint.pt", {"vae": vae.state_dict(), "mean": mean_C, "deviation": deviation_C})
    unit = (latents - mean_C.numpy()[:, None, None]) / deviation_C.numpy()[:, None, None]
    write_array(work / "latents.npy", unit.astype(np.float32))


def encode(vae: AutoencoderKL, pixels: np.ndarray) -> np.ndarray:
    """Latent means of uint8 pixels [N, H, W, C], as float32 [N, 4, H/8, W/8], not scaled."""
    chunks = []
    with torch.no_grad():
        for start in range(0, len(pixels), BATCH_SIZE):
            mean, _ = moments(vae, to_signed(pixels[start : start + BATCH_SIZE]))
            chunks.append(mean.numpy())
    return np.concatenate(chunks)


def change_units(vae: AutoencoderKL, shift_C: Tensor, scale_C: Tensor) -> None:
    """Fold `(latent - shift) / scale` into `quant_conv`, its inverse into `post_quant_conv`; images stay as is."""
    with torch.no_grad():
        into, out = vae.quant_conv, vae.post_quant_conv
        channels = len(shift_C)
        into.bias[:channels] -= shift_C
        into.bias[:channels] /= scale_C
        into.weight[:channels] /= scale_C[:, None, None, None]
        into.bias[channels:] -= 2 * scale_C.log()
        out.bias += out.weight[:, :, 0, 0] @ shift_C
        out.weight *= scale_C[None, :, None, None]
