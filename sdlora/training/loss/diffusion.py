"""The forward diffusion process: noisy latents, what the UNet should predict, signal-to-noise ratio.

Legend: B batch, C channels, H and W latent height and width, T number of timesteps. alphas_cumprod_T is the share of
signal power left at each timestep; 0 at the last one if the schedule ends in pure noise (zero terminal SNR).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdlora.config.base_model import Prediction


def signal_and_noise_rates(alphas_cumprod_T: Tensor, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
    """Factors on image and noise at each image's timestep, fp32: sqrt(alphas_cumprod), sqrt(1 - alphas_cumprod)."""
    alphas_B = alphas_cumprod_T.to(timesteps_B.device, torch.float32)[timesteps_B]
    return alphas_B.sqrt(), (1.0 - alphas_B).sqrt()


def add_noise(latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor, alphas_cumprod_T: Tensor) -> Tensor:
    """Noisy latents at the given timesteps, fp32 (Ho et al. 2020, equation 4)."""
    signal_B111, spread_B111 = _broadcast(signal_and_noise_rates(alphas_cumprod_T, timesteps_B))
    return signal_B111 * latents_BCHW.float() + spread_B111 * noise_BCHW.float()


def target(
    latents_BCHW: Tensor,
    noise_BCHW: Tensor,
    timesteps_B: Tensor,
    alphas_cumprod_T: Tensor,
    prediction: Prediction,
) -> Tensor:
    """What the UNet should predict, fp32: the noise, or the velocity (Salimans and Ho 2022, appendix D)."""
    if prediction == "epsilon":
        return noise_BCHW.float()
    signal_B111, spread_B111 = _broadcast(signal_and_noise_rates(alphas_cumprod_T, timesteps_B))
    return signal_B111 * noise_BCHW.float() - spread_B111 * latents_BCHW.float()


def snr(timesteps_B: Tensor, alphas_cumprod_T: Tensor) -> Tensor:
    """Signal-to-noise ratio by power at each timestep, fp32, 0 for pure noise (Kingma et al. 2021, equation 2)."""
    signal_B, spread_B = signal_and_noise_rates(alphas_cumprod_T, timesteps_B)
    return (signal_B / spread_B) ** 2


def _broadcast(rates: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    signal_B, spread_B = rates
    return signal_B[:, None, None, None], spread_B[:, None, None, None]
