"""Loss on held-out images with fixed noise at fixed timesteps, relative to the base model's.

Shapes: B batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from sdlora.adapters.live.attach import Adapter
from sdlora.config.optimization import SCHEDULE_FREE
from sdlora.config.train import TrainConfig
from sdlora.data.batches import derive_seed, sample_generator, sample_random
from sdlora.data.buckets import BucketedImage
from sdlora.models.bundle import Bundle
from sdlora.training.inputs.latents import LatentSource
from sdlora.training.inputs.texts import TextSource
from sdlora.training.loss.diffusion import add_noise, target
from sdlora.training.optimization.precision import PrecisionContext
from sdlora.training.workers import Workers


@dataclass(frozen=True)
class Validation:
    """Measures held-out images. The same images, captions, noise and timesteps at every call."""

    placed: Sequence[BucketedImage]
    config: TrainConfig
    bundle: Bundle
    adapter: Adapter
    latents: LatentSource
    texts: TextSource
    precision: PrecisionContext
    workers: Workers | None = None
    """Those who divide the images between them; each gets the same result."""

    def caption(self, placed: BucketedImage) -> str:
        """The caption of a held-out image: with trigger, nothing dropped, shuffled or picked by chance."""
        return placed.record.plain_caption()

    @cached_property
    def identity(self) -> str:
        """Changes with all that makes losses of before and after a change of settings mean different things."""
        optimization = self.config.optimization
        images = [
            (item.record.content_hash, item.resolution, self.caption(item), str(item.placement)) for item in self.placed
        ]
        weights = bool(optimization.ema), optimization.optimizer in SCHEDULE_FREE
        told = [sorted(images), self.config.validation.timesteps, self.config.seed, weights]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def base_loss(self) -> float:
        """The mean loss of the base model without the adapter."""
        with self.adapter.disabled():
            return self.loss()

    @torch.no_grad()
    def loss(self) -> float:
        """Mean squared error over images and timesteps, unweighted."""
        index, count = (self.workers.index, self.workers.count) if self.workers else (0, 1)
        losses = [self._loss(item) if number % count == index else 0.0 for number, item in enumerate(self.placed)]
        if self.workers:
            losses = self.workers.gather_parts(losses)
        # fsum rounds once, so the mean doesn't hang on the order of the images.
        return math.fsum(losses) / len(losses)

    def _loss(self, item: BucketedImage) -> float:
        device = self.bundle.device
        schedule = self.bundle.schedule.to(device)
        crop = self.latents.measured(item, sample_random(self.config.seed, "validation", item.record.content_hash))
        timesteps_B = torch.tensor(self.config.validation.timesteps, device=device)
        count = len(timesteps_B)
        # The posterior's mean, not a sample of it, so that nothing but the adapter changes the loss.
        latents_BCHW = crop.mean_CHW.expand(count, -1, -1, -1).to(device)
        # The noise hangs on the image's content: adding or renaming another image changes no image's loss.
        generator = sample_generator(
            derive_seed(self.config.seed, "validation"), item.record.content_hash, item.resolution
        )
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator).to(device)
        noisy_BCHW = add_noise(latents_BCHW, noise_BCHW, timesteps_B, schedule)
        if crop.inpaint_5HW is not None:
            noisy_BCHW = torch.cat([noisy_BCHW, crop.inpaint_5HW.to(noisy_BCHW).expand(count, -1, -1, -1)], dim=1)
        conditional_BCHW = target(latents_BCHW, noise_BCHW, timesteps_B, schedule)
        with self.precision.autocast():
            states = self.texts.states([self.caption(item)] * count)
            predicted_BCHW = self.bundle.family.predict(
                self.bundle, noisy_BCHW, schedule.unet_timesteps_T[timesteps_B], states, [crop.size_conditions] * count
            )
        # Plain MSE whatever the objective is, so that runs with other losses and weightings compare.
        return (predicted_BCHW.float() - conditional_BCHW).square().mean().item()
