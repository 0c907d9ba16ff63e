"""How well the UNet predicts the noise of given images: with the same timesteps and noise for all, every time.

The draws come from counters (seed, image size, draw), not from the image: two images of one size are measured with the
very same noise, two checkpoints always are, and what differs is the image's or the checkpoint's doing.

Legend: B batch, C latent channels, H and W latent height and width, N images, K draws, M captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.constants import LATENT_FACTOR
from sdlora.data.batches import sample_generator
from sdlora.models.bundle import Bundle, TextStates, join_text_states
from sdlora.models.inpainting import blank_conditions, is_inpainting
from sdlora.models.size_conditions import SizeConditions
from sdlora.training.loss.diffusion import add_noise, target

WHOLE = (0.05, 0.95)
"""Share of the schedule that the timesteps are spread over: at its ends the loss says little of an image."""


@dataclass(frozen=True)
class MeasuredImage:
    """An image as the UNet is asked about it: latents_CHW, its text and its size conditions."""

    latents_CHW: Tensor
    states: TextStates
    size_conditions: SizeConditions


def timesteps(draws: int, total: int, between: tuple[float, float] = WHOLE) -> list[int]:
    """So many timesteps, evenly spread over that part of a schedule of `total` steps."""
    first, last = between
    if draws == 1:
        return [round((first + last) / 2 * (total - 1))]
    return [round((first + (last - first) * draw / (draws - 1)) * (total - 1)) for draw in range(draws)]


def measure(
    bundle: Bundle,
    images: Sequence[MeasuredImage],
    steps: Sequence[int],
    *,
    seed: int,
    empty: TextStates,
    batch_size: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """losses_NK: mean squared error of each image at each timestep, fp32, unweighted, with the model as it is.

    empty: the encoded caption "", which fills up shorter ones. on_progress: called with images done.
    """
    schedule = bundle.schedule.to(bundle.device)
    jobs = [(place, draw) for place in range(len(images)) for draw in range(len(steps))]
    losses_NK = torch.zeros(len(images), len(steps))
    for group in _alike(jobs, images, batch_size):
        latents_BCHW = torch.stack([images[place].latents_CHW for place, _ in group]).to(bundle.device)
        shape = tuple(latents_BCHW.shape[1:])
        noise_BCHW = torch.stack([_noise(shape, seed, draw) for _, draw in group]).to(bundle.device)
        timesteps_B = torch.tensor([steps[draw] for _, draw in group], device=bundle.device)
        noisy_BCHW = add_noise(latents_BCHW, noise_BCHW, timesteps_B, schedule)
        if is_inpainting(bundle):  # all of the image is to be painted, so that all of it is asked for
            height, width = latents_BCHW.shape[2:]
            blank_BCHW = blank_conditions(bundle, len(group), width * LATENT_FACTOR, height * LATENT_FACTOR)
            noisy_BCHW = torch.cat([noisy_BCHW, blank_BCHW.to(noisy_BCHW)], dim=1)
        wanted_BCHW = target(latents_BCHW, noise_BCHW, timesteps_B, schedule)
        states = join_text_states([images[place].states for place, _ in group], empty).to(bundle.device)
        conditions = [images[place].size_conditions for place, _ in group]
        with torch.no_grad():
            asked_B = schedule.unet_timesteps_T[timesteps_B]
            predicted_BCHW = bundle.family.predict(bundle, noisy_BCHW, asked_B, states, conditions)
        loss_B = (predicted_BCHW.float() - wanted_BCHW).square().mean(dim=(1, 2, 3)).cpu()
        for (place, draw), loss in zip(group, loss_B.tolist(), strict=True):
            losses_NK[place, draw] = loss
        on_progress(group[-1][0] + 1)
    return losses_NK


def prompt_gain(own_NK: Tensor, other_NK: Tensor) -> Tensor:
    """gain_N: share of the noise's error that an image's own prompt explains against another, mean over the draws.

    Above 0 the image fits its prompt better than the other one in the model's own eyes: the ratio of likelihoods behind
    a diffusion classifier (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier"), as a share so
    that images compare. Below 0 counts as 0: how badly an image fits, once it doesn't, says nothing more.
    """
    return ((other_NK - own_NK) / other_NK).mean(dim=1).clamp(min=0)


def _noise(shape_CHW: tuple[int, ...], seed: int, draw: int) -> Tensor:
    generator = sample_generator(seed, "evaluation", "x".join(map(str, shape_CHW)), draw)
    return torch.randn(shape_CHW, generator=generator)


def _alike(
    jobs: Sequence[tuple[int, int]], images: Sequence[MeasuredImage], batch_size: int
) -> list[list[tuple[int, int]]]:
    """The jobs in batches of one size of latents, in the order of their first images."""
    by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for job in jobs:
        by_shape.setdefault(tuple(images[job[0]].latents_CHW.shape), []).append(job)
    return [
        group[start : start + batch_size] for group in by_shape.values() for start in range(0, len(group), batch_size)
    ]
