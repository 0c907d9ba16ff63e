"""Prompts to images with a bundle as it is, live adapter layers and all: for previews while training.

Shapes: B images, C channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sdlora.generation.sampling.denoising import Conditions, Hooks, denoise
from sdlora.generation.sampling.samplers import make_scheduler
from sdlora.models.family import Bundle, TextStates
from sdlora.models.vae import decode_latents

LATENT_FACTOR = 8


@dataclass(frozen=True)
class SampleRequest:
    """One image to generate. Sizes in pixels, multiples of 8."""

    prompt: str
    width_px: int
    height_px: int
    seed: int
    negative: str = ""
    steps: int = 25
    guidance: float = 7.0


@torch.no_grad()
def sample(
    bundle: Bundle,
    requests: Sequence[SampleRequest],
    *,
    on_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Draw requests that share size and steps as one batch, with DPM++ 2M; each has its own seed.

    Modules must be on their devices; wrap the call in autocast where the weights are in half precision.
    """
    first = requests[0]
    if any(
        (request.width_px, request.height_px, request.steps) != (first.width_px, first.height_px, first.steps)
        for request in requests
    ):
        raise ValueError("requests of one batch must share width, height and steps")
    captions = [request.prompt for request in requests] + [request.negative for request in requests]
    both = bundle.family.encode_text(bundle, captions)
    guidance_B = torch.tensor([request.guidance for request in requests], device=bundle.device)
    conditions = Conditions(
        (_part(both, slice(0, len(requests))),),
        torch.ones(1, len(requests), device=bundle.device),
        _part(both, slice(len(requests), None)),
        guidance_B,
        torch.zeros_like(guidance_B),
        bundle.family.full_size_conditions(first.width_px, first.height_px),
    )
    scheduler = make_scheduler("DPM++ 2M", bundle.schedule, first.steps)
    generators = [seeded(request.seed) for request in requests]
    noise_BCHW = unit_noise(generators, first.width_px, first.height_px).to(bundle.device)
    hooks = Hooks(after_step=None if on_step is None else lambda step: on_step(step.number))
    latents_BCHW = denoise(
        bundle, scheduler, noise_BCHW * scheduler.init_noise_sigma, lambda *_: conditions, generators, hooks=hooks
    )
    return to_images(decode_latents(bundle, latents_BCHW))


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU, so that a seed means the same on every device."""
    return torch.Generator().manual_seed(seed)


def unit_noise(generators: Sequence[torch.Generator], width_px: int, height_px: int) -> Tensor:
    """Unit noise on the CPU, each image's from its own generator: it never depends on its neighbours."""
    shape = (1, 4, height_px // LATENT_FACTOR, width_px // LATENT_FACTOR)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """RGB images from pixels in [-1, 1]."""
    bytes_BHWC = ((pixels_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in bytes_BHWC]


def _part(states: TextStates, rows: slice) -> TextStates:
    return TextStates(states.states_BTD[rows], None if states.pooled_BD is None else states.pooled_BD[rows])
