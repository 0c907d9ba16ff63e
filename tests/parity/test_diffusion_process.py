"""Noisy latents, targets and SNR against diffusers and a numpy derivation in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from sdlora.models.schedule import NoiseSchedule
from sdlora.training.loss.diffusion import add_noise, snr, target

of_alphas = NoiseSchedule.of_alphas
SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
ZERO_TERMINAL = DDPMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
)
TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])


@pytest.fixture
def latents_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (len(TIMESTEPS), 4, 6, 5)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("scheduler", [SCHEDULER, ZERO_TERMINAL])
def test_noisy_latents_equal_those_of_diffusers(scheduler, latents_and_noise):
    latents, noise = latents_and_noise
    ours = add_noise(latents, noise, TIMESTEPS, of_alphas(scheduler.alphas_cumprod))
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, TIMESTEPS))


@pytest.mark.parametrize("scheduler", [SCHEDULER, ZERO_TERMINAL])
def test_velocity_target_equals_that_of_diffusers(scheduler, latents_and_noise):
    latents, noise = latents_and_noise
    ours = target(latents, noise, TIMESTEPS, of_alphas(scheduler.alphas_cumprod, "v_prediction"))
    torch.testing.assert_close(ours, scheduler.get_velocity(latents, noise, TIMESTEPS))


def test_epsilon_target_is_the_noise(latents_and_noise):
    latents, noise = latents_and_noise
    assert torch.equal(target(latents, noise, TIMESTEPS, of_alphas(SCHEDULER.alphas_cumprod)), noise)


def test_snr_equals_that_of_diffusers():
    torch.testing.assert_close(snr(TIMESTEPS, of_alphas(SCHEDULER.alphas_cumprod)), compute_snr(SCHEDULER, TIMESTEPS))


def test_snr_equals_a_derivation_from_the_betas_in_double_precision():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    expected = alphas_cumprod / (1 - alphas_cumprod)
    ours = snr(torch.arange(1000), of_alphas(SCHEDULER.alphas_cumprod)).double().numpy()
    np.testing.assert_allclose(ours, expected, rtol=2e-4)


def test_pure_noise_has_snr_zero():
    assert snr(torch.tensor([999]), of_alphas(ZERO_TERMINAL.alphas_cumprod)).item() == pytest.approx(0.0, abs=1e-9)


def test_half_precision_latents_are_noised_in_full_precision(latents_and_noise):
    latents, noise = (tensor.bfloat16() for tensor in latents_and_noise)
    noisy = add_noise(latents, noise, TIMESTEPS, of_alphas(SCHEDULER.alphas_cumprod))
    assert noisy.dtype == torch.float32
    torch.testing.assert_close(noisy, SCHEDULER.add_noise(latents.float(), noise.float(), TIMESTEPS))
