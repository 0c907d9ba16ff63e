"""Prompts to images with a bundle as it is, live adapter layers and all: for previews while training.

Shapes: B images, C channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sdlora.config.generate import Sampler
from sdlora.constants import LATENT_FACTOR
from sdlora.generation.request.prompt_schedule import schedule
from sdlora.generation.sampling.denoising import Hooks, denoise
from sdlora.generation.sampling.samplers import make_scheduler, rescale_of
from sdlora.generation.sampling.text_conditions import RowTexts, TextConditions
from sdlora.generation.sampling.texts import Texts
from sdlora.models.bundle import Bundle
from sdlora.models.inpainting import blank_conditions, is_inpainting
from sdlora.models.vae import decode_latents


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
    sampler: Sampler = "DPM++ 2M"

    @property
    def shares(self) -> tuple[object, ...]:
        """What requests of one batch have in common."""
        prompts = len(schedule(self.prompt, 1).prompts[0])
        return self.width_px, self.height_px, self.steps, self.sampler, prompts


@torch.no_grad()
def sample(
    bundle: Bundle,
    requests: Sequence[SampleRequest],
    *,
    on_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Generate requests that share size, steps and sampler as one batch; each has its own seed.

    Modules must be on their devices; wrap the call in autocast where the weights are in half precision.
    """
    first = requests[0]
    if any(request.shares != first.shares for request in requests):
        raise ValueError("requests of one batch must share width, height, steps and sampler")
    rescale = rescale_of("auto", bundle)
    rows = [
        RowTexts.of(request.prompt, request.negative, request.steps, request.guidance, rescale) for request in requests
    ]
    texts = TextConditions(Texts(bundle, None), rows, [()] * len(rows))
    conditions = texts.at_size(bundle.family.full_size_conditions(first.width_px, first.height_px), bundle.device)
    scheduler = make_scheduler(first.sampler, bundle.schedule, first.steps, bundle.device)
    generators = [seeded(request.seed) for request in requests]
    noise_BCHW = unit_noise(generators, first.width_px, first.height_px).to(bundle.device)
    hooks = Hooks(after_step=None if on_step is None else lambda step: on_step(step.number))
    inpaint_B5HW = None
    if is_inpainting(bundle):
        blank_B5HW = blank_conditions(bundle, len(requests), first.width_px, first.height_px)
        inpaint_B5HW = blank_B5HW.to(bundle.device)
    latents_BCHW = denoise(
        bundle,
        scheduler,
        noise_BCHW * scheduler.init_noise_sigma,
        conditions,
        generators,
        hooks=hooks,
        inpaint_B5HW=inpaint_B5HW,
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
