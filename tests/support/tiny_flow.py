"""A tiny base of SDXL's topology that predicts a rectified flow, trained from scratch on sample images.

Random UNets learn nothing from an adapter; this one knows enough for an adapter to improve on it. Its VAE is that of
builtin:emoji, whose latents mean something, and its text encoders are random.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

import sdlora.models.builtin
from sdlora.config import files
from sdlora.events import EventStream
from sdlora.models.loading import load
from sdlora.training.inputs.examples import BatchSource
from sdlora.training.inputs.images import find_images
from sdlora.training.inputs.latents import LatentSource
from sdlora.training.inputs.texts import TextSource
from sdlora.training.loss.diffusion import add_noise, target
from sdlora.training.loss.noise import make_noise, sample_timesteps
from tests.support.tiny_models import build

_BATCH = 8


def train_flow_base(folder: Path, images: Sequence[Path | str], *, steps: int) -> list[float]:
    """Write the model to `folder`; returns the loss of every step.

    images: folders, or `builtin:` and a sample set's name.
    """
    build("sdxl", folder, prediction="flow", shallow=True)
    shutil.rmtree(folder / "vae")
    shutil.copytree(Path(sdlora.models.builtin.__file__).parent / "emoji" / "vae", folder / "vae")
    config = files.load(
        overrides=[
            f"base_model.model={folder}",
            f"images.folder=[{', '.join(map(str, images))}]",
            "images.resolution=64",
            "images.cache=false",
            "images.bucket_step=32",
            "objective.timestep_distribution=logit_normal",
        ]
    )
    bundle, events = load(config.base_model.model_copy(update={"precision": "fp32"})), EventStream([])
    found = find_images(config)
    latents = LatentSource(bundle, config.images, None)
    latents.prepare(found.placed, events)
    batches = BatchSource(found.placed, latents, batch_size=_BATCH, seed=0)
    texts = TextSource(bundle, config.captions, None, live=False)
    unet, schedule, losses = bundle.unet.train().requires_grad_(True), bundle.schedule, []
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        batch = batches.batch(step)
        noise = make_noise(tuple(batch.latents_BCHW.shape[1:]), batch.generators)
        timesteps = sample_timesteps(batch.generators, config.objective)
        noisy = add_noise(batch.latents_BCHW, noise, timesteps, schedule)
        told, states = schedule.unet_timesteps_T[timesteps], texts.states(batch.captions)
        predicted = bundle.family.predict(bundle, noisy, told, states, batch.size_conditions)
        loss = (predicted - target(batch.latents_BCHW, noise, timesteps, schedule)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    unet.save_pretrained(folder / "unet")
    return losses
