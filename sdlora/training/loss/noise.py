"""Random draws of a training step: noise and timesteps, each image from its own generator.

With one generator an image, seeded by (run seed, step, sample), an image's draws depend neither on its neighbours in
the batch nor on what was drawn before, so a resumed run repeats the uninterrupted one. Generators are CPU generators:
the same seed gives the same draws whatever device trains. All results are fp32 on the CPU.

Legend: B batch, C channels, H and W latent height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from sdlora.config.objective import ObjectiveConfig
from sdlora.data.batches import sample_random

Shape = tuple[int, int, int]
_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


def make_noise(
    shape_CHW: Shape,
    generators: Sequence[Generator],
    *,
    noise_offset: float = 0.0,
    random_offset: bool = False,
    multires_iterations: int = 0,
    multires_discount: float = 0.3,
) -> Tensor:
    """Noise of unit variance for a batch, one image from each generator; returns noise_BCHW.

    noise_offset: spread of a constant added to each channel (Guttenberg 2023, "Diffusion with offset noise").
    random_offset: an image's spread is drawn evenly between 0 and noise_offset.
    multires_iterations: coarser levels added (Whitaker 2023, "Multi-resolution noise"), 0 for none;
    multires_discount: strength of each level relative to the one before.
    """
    noise = []
    for generator in generators:
        noise_CHW = torch.randn(shape_CHW, generator=generator)
        if multires_iterations:
            # What is switched off draws nothing, so a run without it has the noise it would have if it did not exist.
            noise_CHW = _add_coarse_levels(noise_CHW, generator, multires_iterations, multires_discount)
        if noise_offset:
            offset = noise_offset * (torch.rand((), generator=generator) if random_offset else 1.0)
            noise_CHW = noise_CHW + offset * torch.randn((shape_CHW[0], 1, 1), generator=generator)
        noise.append(noise_CHW)
    return torch.stack(noise)


def perturb(
    noise_BCHW: Tensor, generators: Sequence[Generator], strength: float, *, random_strength: bool = False
) -> Tensor:
    """Noise for the UNet's input only, which the target does not know of (Ning et al. 2023).

    random_strength: an image's strength is drawn evenly between 0 and `strength`. Returns noise_BCHW itself when
    strength is 0.
    """
    if strength == 0.0:
        return noise_BCHW
    shape_CHW = noise_BCHW.shape[1:]
    extra = []
    for generator in generators:
        own = strength * (torch.rand((), generator=generator) if random_strength else 1.0)
        extra.append(own * torch.randn(shape_CHW, generator=generator))
    return noise_BCHW + torch.stack(extra).to(noise_BCHW.device)


def sample_timesteps(
    generators: Sequence[Generator],
    objective: ObjectiveConfig,
    evenly: Sequence[float] | None = None,
) -> Tensor:
    """One timestep an image within [min_timestep, max_timestep], both included; returns int64 timesteps_B.

    A position in [0, 1) is drawn and spread over the range:
    uniform       evenly
    logit_normal  sigmoid of a unit normal, mostly the middle (Esser et al. 2024, section 3.1)
    cubic         1 - u^3 for even u, mostly the noisy end (Mou et al. 2023, T2I-Adapter)
    objective.timestep_shift then moves it towards noise (Esser et al. 2024, equation 23).
    evenly: the even u of each image in place of draws of its own, see `even_positions`.
    """
    count = objective.max_timestep - objective.min_timestep + 1
    if evenly is None:
        positions = [_position(generator, objective.timestep_distribution) for generator in generators]
    else:
        positions = [_spread(torch.tensor(u, dtype=torch.float64), objective.timestep_distribution) for u in evenly]
    shift = objective.timestep_shift
    if shift != 1.0:
        positions = [shift * position / (1.0 + (shift - 1.0) * position) for position in positions]
    # In float64 a position of almost 1 times the count can still round up to the count itself.
    steps_B = (torch.stack(positions) * count).long().clamp(max=count - 1)
    return objective.min_timestep + steps_B


def even_positions(numbers: Sequence[int], seed: int) -> list[float]:
    """Places in [0, 1) of the images with these numbers in a run, so that any stretch of numbers fills it evenly.

    Kingma et al. 2021 (Variational Diffusion Models, appendix I.1) space the timesteps of a batch evenly behind one
    random offset. Steps of the golden ratio do so for every stretch of numbers at once, whatever its length, and hang
    on the number alone, so that a resumed run goes on with them.
    """
    offset = sample_random(seed, "even timesteps").random()
    return [(offset + number * _GOLDEN_RATIO) % 1.0 for number in numbers]


def _position(generator: Generator, distribution: str) -> Tensor:
    if distribution == "logit_normal":
        return torch.sigmoid(torch.randn((), generator=generator, dtype=torch.float64))
    return _spread(torch.rand((), generator=generator, dtype=torch.float64), distribution)


def _spread(even: Tensor, distribution: str) -> Tensor:
    """An even number as one of the distribution: what lies below it has the same share."""
    if distribution == "logit_normal":
        return torch.sigmoid(torch.special.ndtri(even))
    return 1.0 - even**3 if distribution == "cubic" else even


def _add_coarse_levels(noise_CHW: Tensor, generator: Generator, iterations: int, discount: float) -> Tensor:
    """Add ever coarser noise, upsampled, and scale back to unit variance.

    As in Whitaker's formula level i is smaller than the one before by a random factor r^i, r in [2, 4), has strength
    discount^i, and the first (i = 0) has full size; levels end when an edge has shrunk to one latent pixel.
    """
    channels, height, width = noise_CHW.shape
    full_size = (height, width)
    total_CHW = noise_CHW
    for level in range(iterations):
        shrink = (2.0 + 2.0 * torch.rand((), generator=generator).item()) ** level
        height, width = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse_1CHW = torch.randn((1, channels, height, width), generator=generator)
        total_CHW = total_CHW + discount**level * interpolate(coarse_1CHW, full_size, mode="bilinear")[0]
        if height == 1 or width == 1:
            break
    return total_CHW / total_CHW.std()
