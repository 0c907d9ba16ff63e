"""The forward diffusion process: noisy latents, what the UNet should predict, signal-to-noise ratio.

Legend: B batch, C channels, H and W latent height and width.
"""

from __future__ import annotations

from torch import Tensor

from sdlora.models.schedule import NoiseSchedule


def signal_and_noise_rates(schedule: NoiseSchedule, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
    """Factors on image and noise at each image's timestep, fp32."""
    schedule = schedule.to(timesteps_B.device)
    return schedule.signal_T[timesteps_B], schedule.spread_T[timesteps_B]


def add_noise(latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Noisy latents at the given timesteps, fp32 (Ho et al. 2020, equation 4; on a line for rectified flow)."""
    signal_B111, spread_B111 = _broadcast(signal_and_noise_rates(schedule, timesteps_B))
    return signal_B111 * latents_BCHW.float() + spread_B111 * noise_BCHW.float()


def target(latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor, schedule: NoiseSchedule) -> Tensor:
    """What the UNet should predict, fp32.

    epsilon is the noise, v the velocity on the circle (Salimans and Ho 2022, appendix D), flow that on the line from
    image to noise (Liu et al. 2022, equation 1, seen from the noise).
    """
    if schedule.prediction == "epsilon":
        return noise_BCHW.float()
    if schedule.prediction == "flow":
        return noise_BCHW.float() - latents_BCHW.float()
    signal_B111, spread_B111 = _broadcast(signal_and_noise_rates(schedule, timesteps_B))
    return signal_B111 * noise_BCHW.float() - spread_B111 * latents_BCHW.float()


def snr(timesteps_B: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Signal-to-noise ratio by power at each timestep, fp32, 0 for pure noise (Kingma et al. 2021, equation 2)."""
    signal_B, spread_B = signal_and_noise_rates(schedule, timesteps_B)
    return (signal_B / spread_B) ** 2


def _broadcast(rates: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    signal_B, spread_B = rates
    return signal_B[:, None, None, None], spread_B[:, None, None, None]
