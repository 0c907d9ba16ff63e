"""Loss on held-out pictures with fixed noise, by diffusers alone: nothing here comes from the trainer.

Shapes: B pictures, or noise draws of one, C channels, H and W latent height and width, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TIMESTEPS = (50, 200, 400, 600, 800)
"""From almost clean to almost noise; the noise of each is drawn once for a picture."""


@dataclass(frozen=True)
class Picture:
    """A picture as the model sees it."""

    latents_BCHW: Tensor
    """Of one picture, the mean of what the VAE gives."""
    states_BTD: Tensor
    """Its caption, encoded by the base's own text encoder."""
    caption: str


class HeldOutLoss:
    """Mean squared error of a base model with an adapter file, on the pictures of one folder."""

    def __init__(self, base: Path, folder: Path, size_px: int) -> None:
        logging.set_verbosity_error()  # diffusers warns when a file has no layers of the text encoder
        logging.disable_progress_bar()
        self._pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, safety_checker=None)
        self._schedule = DDPMScheduler.from_config(self._pipeline.scheduler.config)
        self.pictures = [self._read(path, size_px) for path in sorted(folder.glob("*.png"))]

    @torch.no_grad()
    def of(self, adapter: Path | None, embeddings: Mapping[str, Path] | None = None) -> float:
        """The loss with this adapter file and these embeddings by token, or the base model's own."""
        pipeline = self._pipeline
        if adapter is not None:
            pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name, adapter_name="measured")
        for token, file in (embeddings or {}).items():
            pipeline.load_textual_inversion(str(file), token=token)
        try:
            # Encoded again, as the adapter may have layers of the text encoder.
            pictures = [replace(each, states_BTD=self._encode(each.caption)) for each in self.pictures]
            losses = [picture_loss(pipeline.unet, self._schedule, *each) for each in enumerate(pictures)]
        finally:
            if adapter is not None:
                pipeline.unload_lora_weights()
            if embeddings:
                pipeline.unload_textual_inversion()
        return math.fsum(losses) / len(losses)

    @torch.no_grad()
    def _read(self, path: Path, size_px: int) -> Picture:
        image = Image.open(path).convert("RGB").resize((size_px, size_px), Image.Resampling.LANCZOS)
        pixels_BCHW = torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None] / 127.5 - 1.0
        vae = self._pipeline.vae
        latents_BCHW = vae.encode(pixels_BCHW).latent_dist.mean * vae.config.scaling_factor
        caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        return Picture(latents_BCHW, self._encode(caption), caption)

    def _encode(self, caption: str) -> Tensor:
        tokenizer = self._pipeline.tokenizer
        tokens = tokenizer(
            # A token of several vectors stands for as many words of the vocabulary.
            self._pipeline.maybe_convert_prompt(caption, tokenizer),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return self._pipeline.text_encoder(tokens)[0]


def picture_loss(unet: nn.Module, schedule: DDPMScheduler, index: int, picture: Picture) -> float:
    """A picture's loss over all TIMESTEPS; `index` is the seed of its noise."""
    count = len(TIMESTEPS)
    latents_BCHW = picture.latents_BCHW.expand(count, -1, -1, -1)
    noise_BCHW = torch.randn(latents_BCHW.shape, generator=torch.Generator().manual_seed(1000 + index))
    timesteps_B = torch.tensor(TIMESTEPS)
    noisy_BCHW = schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
    states_BTD = picture.states_BTD.expand(count, -1, -1)
    predicted_BCHW = unet(noisy_BCHW, timesteps_B, encoder_hidden_states=states_BTD).sample
    return (predicted_BCHW - noise_BCHW).square().mean().item()


def update_norm(adapter: Path) -> float:
    """Frobenius norm of all updates of a LoRA file together: |B A|^2 is the sum of B'B times AA', layer by layer."""
    tensors, squares = load_file(adapter), 0.0
    for name in tensors:
        if not name.endswith(".lora_down.weight"):
            continue
        stem = name.removesuffix(".lora_down.weight")
        down, up = (tensors[f"{stem}.lora_{part}.weight"].double().flatten(1) for part in ("down", "up"))
        scale = float(tensors[f"{stem}.alpha"]) / down.shape[0]
        squares += scale**2 * float(((up.T @ up) * (down @ down.T)).sum())
    return math.sqrt(max(squares, 0.0))


def average(adapters: Sequence[Path], weights: Sequence[float], target: Path) -> Path:
    """The weighted mean of checkpoints of one run, factor by factor, as a file."""
    total = math.fsum(weights)
    mean: dict[str, Tensor] = {}
    for path, weight in zip(adapters, weights, strict=True):
        for name, tensor in load_file(path).items():
            mean[name] = (
                mean.get(name, torch.zeros_like(tensor, dtype=torch.float64)) + tensor.double() * weight / total
            )
    save_file(
        {name: tensor.float().contiguous() for name, tensor in mean.items()}, target, metadata=_format(adapters[0])
    )
    return target


def _format(adapter: Path) -> Mapping[str, str] | None:
    from safetensors import safe_open

    with safe_open(adapter, "pt") as file:
        found: Mapping[str, str] | None = file.metadata()
        return found
