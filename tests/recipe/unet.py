"""The UNet and its text encoder, trained together from nothing on cached latents.

Shapes: B images, C latent channels, H and W latent cells, T tokens, D text features.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .data import BENCHMARK_STYLES, EmojiImage, caption, read_images
from .files import load_checkpoint, save_checkpoint
from .optimizer import MasterWeights
from .tokenizer import MAX_TOKENS
from .workers import run_workers

BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
DECAY_SHARE = 0.6
EMPTY_CAPTIONS = 0.1
SNR_CAP = 5.0
EMA_DECAY = 0.995
SAVE_EVERY = 100
TIER_WEIGHTS = {"benchmark": 2.0, "core": 1.0, "wide": 0.6}
OTHER_STYLES_WEIGHT = 0.25
WIDE_FROM = 0.3
"""Share of the training after which the names of the `wide` tier join."""


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet of SD 1.5's topology, five times narrower."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 128, 160),
        layers_per_block=2,
        cross_attention_dim=192,
        attention_head_dim=2,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder of three layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=768,
            projection_dim=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_noise_schedule() -> DDPMScheduler:
    """SD 1.5's schedule: 1000 steps, scaled linear betas, epsilon prediction."""
    return DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def train_unet(work: Path, num_workers: int, num_steps: int) -> None:
    """Train UNet and text encoder; resumes from `unet.pt`. `num_steps` may grow or shrink between sittings."""
    run_workers(_train, num_workers, work, num_steps)


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up, constant, then a cosine to zero over the last `DECAY_SHARE`."""
    progress = max(0.0, (step / num_steps - 1) / DECAY_SHARE + 1)
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def sampling_weights(images: list[EmojiImage], wide: bool) -> np.ndarray:
    """How often each image is drawn, summing to 1; images without captions are never drawn."""
    weights = np.zeros(len(images))
    for index, image in enumerate(images):
        if image.captions and (wide or image.tier != "wide"):
            weights[index] = TIER_WEIGHTS[image.tier]
            if image.style not in BENCHMARK_STYLES:
                weights[index] *= OTHER_STYLES_WEIGHT
    return weights / weights.sum()


def diffusion_loss(
    unet: UNet2DConditionModel,
    latents_BCHW: Tensor,
    text_BTD: Tensor,
    noise_BCHW: Tensor,
    timesteps_B: Tensor,
    alphas: Tensor,
) -> Tensor:
    """Mean squared error of the predicted noise with min-SNR weights (Hang et al. 2023). alphas: cumulative."""
    alpha = alphas[timesteps_B]
    noisy = alpha.sqrt()[:, None, None, None] * latents_BCHW + (1 - alpha).sqrt()[:, None, None, None] * noise_BCHW
    predicted = unet(noisy.to(text_BTD.dtype), timesteps_B, text_BTD).sample.float()
    snr = alpha / (1 - alpha)
    return ((predicted - noise_BCHW).square().mean((1, 2, 3)) * snr.clamp(max=SNR_CAP) / snr).mean()


def _token_table(tokenizer: CLIPTokenizer, images: list[EmojiImage]) -> list[Tensor | None]:
    """For each image its captions as token ids [number of captions, T]."""
    table: list[Tensor | None] = []
    for image in images:
        texts = [caption(words, image.style) for words in image.captions]
        padded = {"padding": "max_length", "max_length": MAX_TOKENS, "return_tensors": "pt"}
        table.append(tokenizer(texts, **padded).input_ids if texts else None)
    return table


def _train(rank: int, num_workers: int, work: Path, num_steps: int) -> None:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    unet.set_attn_processor(AttnProcessor())
    torch.nn.init.zeros_(unet.conv_out.weight)
    unet.bfloat16()
    text_encoder.bfloat16()
    weights = MasterWeights([unet, text_encoder], betas=(0.9, 0.99), decay=0.1)
    average = weights.master.clone()
    first_step = 0
    state = load_checkpoint(work / "unet.pt")
    if state is not None:
        weights.load_state_dict(state["weights"])
        average.copy_(state["average"])
        first_step = state["step"]
    del state
    _, images = read_images(work)
    latents = torch.from_numpy(np.load(work / "latents.npy"))
    tokens = _token_table(tokenizer, images)
    empty = tokenizer("", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids[0]
    alphas = build_noise_schedule().alphas_cumprod
    draws = {wide: np.flatnonzero(sampling_weights(images, wide)) for wide in (False, True)}
    chances = {wide: sampling_weights(images, wide)[draws[wide]] for wide in (False, True)}
    batch_size = BATCH_SIZE // num_workers
    began, losses = time.time(), []
    for step in range(first_step, num_steps):
        randomness = np.random.default_rng((step, rank))
        wide = step >= WIDE_FROM * num_steps
        chosen = randomness.choice(draws[wide], batch_size, p=chances[wide])
        ids = [tokens[index][randomness.integers(len(tokens[index]))] for index in chosen]
        ids = [empty if randomness.random() < EMPTY_CAPTIONS else row for row in ids]
        noise = torch.from_numpy(randomness.standard_normal((batch_size, *latents.shape[1:]), np.float32))
        timesteps = torch.from_numpy(randomness.integers(0, 1000, batch_size))
        text = text_encoder(torch.stack(ids)).last_hidden_state
        loss = diffusion_loss(unet, latents[chosen], text, noise, timesteps, alphas)
        loss.backward()
        weights.step(learning_rate(step, num_steps), num_workers)
        average.lerp_(weights.master, 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
        losses.append(float(loss.detach()))
        if rank == 0 and (step + 1) % 50 == 0:
            rate = (step + 1 - first_step) * BATCH_SIZE / (time.time() - began)
            now, recent = time.strftime("%H:%M:%S"), np.mean(losses[-50:])
            print(f"{now} step {step + 1}/{num_steps} loss {recent:.4f} {rate:.1f} images/s")
        if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == num_steps):
            save_checkpoint(work / "unet.pt", {"weights": weights.state_dict(), "average": average, "step": step + 1})
