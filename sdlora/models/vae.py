"""Images to latents and back.

Shapes: B images, C channels, H and W height and width (pixels, or latent cells of 8x8 pixels).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sdlora.models.bundle import Bundle

_OVERFLOW_NOTE = "the VAE overflowed in {dtype}, so it runs in fp32 from now on"


def encode_moments(bundle: Bundle, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of images in [-1, 1]; scaled, so that latents have unit variance.

    Both are float32 on the VAE's device, to be kept in a cache and drawn from afresh with `sample_latents`.
    """

    def encode() -> tuple[Tensor, Tensor]:
        distribution = bundle.vae.encode(pixels_BCHW.to(bundle.vae.device, bundle.vae.dtype)).latent_dist
        scale, shift = _scale_and_shift(bundle)
        # In fp32 from here on: what is cached is read by runs in any precision.
        return (distribution.mean.float() - shift) * scale, distribution.std.float() * scale

    with torch.no_grad(), _no_autocast(bundle):
        mean_BCHW, std_BCHW = encode()
        if not _finite(mean_BCHW, std_BCHW) and _to_fp32(bundle):
            mean_BCHW, std_BCHW = encode()
    return mean_BCHW, std_BCHW


def sample_latents(mean_BCHW: Tensor, std_BCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One sample of latents; the generator belongs to the CPU, so that a seed means the same on every device."""
    noise_BCHW = torch.randn(mean_BCHW.shape, generator=generator, dtype=torch.float32)
    return mean_BCHW + std_BCHW * noise_BCHW.to(mean_BCHW.device)


def encode_images(bundle: Bundle, pixels_BCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Latents of images in [-1, 1], drawn from the VAE's distribution, scaled, float32."""
    return sample_latents(*encode_moments(bundle, pixels_BCHW), generator)


def decode_latents(bundle: Bundle, latents_BCHW: Tensor) -> Tensor:
    """Images of scaled latents, float32, about [-1, 1] (not clamped)."""

    def decode() -> Tensor:
        scale, shift = _scale_and_shift(bundle)
        unscaled_BCHW = (latents_BCHW.to(bundle.vae.device).float() / scale + shift).to(bundle.vae.dtype)
        pixels: Tensor = bundle.vae.decode(unscaled_BCHW, return_dict=False)[0]
        return pixels.float()

    with torch.no_grad(), _no_autocast(bundle):
        pixels_BCHW = decode()
        # Latents that are not finite already are the UNet's doing, which another VAE type does not change.
        if not _finite(pixels_BCHW) and _finite(latents_BCHW) and _to_fp32(bundle):
            pixels_BCHW = decode()
    return pixels_BCHW


def _no_autocast(bundle: Bundle) -> AbstractContextManager[object]:
    """The VAE keeps its own number type, whatever the UNet runs in."""
    return torch.autocast(bundle.vae.device.type, enabled=False)


def _scale_and_shift(bundle: Bundle) -> tuple[float, float]:
    config = bundle.vae.config
    return float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)


def _finite(*tensors: Tensor) -> bool:
    # One question for all of them: each waits for the device.
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())


def _to_fp32(bundle: Bundle) -> bool:
    """Cast the VAE up after an overflow, once; False when it is in fp32 already."""
    if bundle.vae.dtype == torch.float32:
        return False
    bundle.notes.append(_OVERFLOW_NOTE.format(dtype=str(bundle.vae.dtype).removeprefix("torch.")))
    bundle.vae.to(torch.float32)
    return True
