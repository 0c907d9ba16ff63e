"""Prompts to images with a loaded bundle: the plain sampling loop.

Shapes: B images, C channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from sdlora.models.family import Bundle, NoiseSchedule
from sdlora.models.vae import decode_latents

_LATENT_FACTOR = 8
_SMALLEST_ALPHA_BAR = 2.0**-24  # zero terminal SNR would make the first sigma infinite


@dataclass(frozen=True)
class SampleRequest:
    """One image to draw. Sizes in pixels, multiples of 8."""

    prompt: str
    width_px: int
    height_px: int
    seed: int
    negative: str = ""
    steps: int = 25
    guidance: float = 7.0


def sampling_scheduler(schedule: NoiseSchedule, steps: int) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (Lu et al. 2022) over the model's own noise schedule, set to `steps` steps."""
    alpha_bar_T = schedule.alphas_cumprod_T.double().clamp(min=_SMALLEST_ALPHA_BAR)
    previous_T = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar_T[:-1]])
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(alpha_bar_T),
        trained_betas=(1 - alpha_bar_T / previous_T).tolist(),
        prediction_type=schedule.prediction,
        algorithm_type="dpmsolver++",
        timestep_spacing="trailing" if schedule.zero_terminal_snr else "leading",
        steps_offset=0 if schedule.zero_terminal_snr else 1,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def sample(
    bundle: Bundle,
    requests: Sequence[SampleRequest],
    *,
    on_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Draw requests that share size, steps and guidance as one batch; each has its own seed.

    Modules must be on their devices; wrap the call in autocast where the weights are in half precision.
    """
    first = requests[0]
    if any(
        (request.width_px, request.height_px, request.steps, request.guidance)
        != (first.width_px, first.height_px, first.steps, first.guidance)
        for request in requests
    ):
        raise ValueError("requests of one batch must share width, height, steps and guidance")
    device = next(bundle.unet.parameters()).device
    family = bundle.family
    captions = [request.prompt for request in requests] + [request.negative for request in requests]
    text_states = family.encode_text(bundle, captions)
    size_conditions = [family.full_size_conditions(first.width_px, first.height_px)] * len(captions)
    scheduler = sampling_scheduler(bundle.schedule, first.steps)
    latents_BCHW = _start_noise(requests).to(device) * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        both_BCHW = scheduler.scale_model_input(torch.cat([latents_BCHW, latents_BCHW]), timestep)
        timesteps_B = timestep.expand(len(captions)).to(device)
        predicted_BCHW = family.predict(bundle, both_BCHW, timesteps_B, text_states, size_conditions)
        wanted_BCHW, unwanted_BCHW = predicted_BCHW.float().chunk(2)
        guided_BCHW = unwanted_BCHW + first.guidance * (wanted_BCHW - unwanted_BCHW)
        latents_BCHW = scheduler.step(guided_BCHW, timestep, latents_BCHW).prev_sample
        if on_step is not None:
            on_step(index + 1)
    return to_images(decode_latents(bundle, latents_BCHW))


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """RGB images from pixels in [-1, 1]."""
    bytes_BHWC = ((pixels_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in bytes_BHWC]


def _start_noise(requests: Sequence[SampleRequest]) -> Tensor:
    """Unit noise on the CPU, each image from its own seed, so that it never depends on its neighbours."""
    height, width = requests[0].height_px // _LATENT_FACTOR, requests[0].width_px // _LATENT_FACTOR
    return torch.stack(
        [torch.randn(4, height, width, generator=torch.Generator().manual_seed(item.seed)) for item in requests]
    )
