"""Rectified flow and EDM v-prediction against diffusers' schedulers, and its samplers on data whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from sdlora.config.generate import samplers_for
from sdlora.errors import ConfigError
from sdlora.generation.sampling.denoising import Step, _clean
from sdlora.generation.sampling.passes import plan_pass
from sdlora.generation.sampling.samplers import make_scheduler
from sdlora.models.schedule import NoiseSchedule, build_schedule
from sdlora.training.loss.diffusion import add_noise, target

FLOW = build_schedule({}, "flow", False, shift=3.0)
EDM = build_schedule({}, "edm_v", False, sigmas=(0.002, 120.0))
TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])


@pytest.fixture
def latents_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (len(TIMESTEPS), 4, 6, 5)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_a_flows_noise_and_timesteps_equal_those_of_diffusers(latents_and_noise):
    latents, noise = latents_and_noise
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    torch.testing.assert_close(FLOW.spread_T.float().flip(0), theirs.sigmas)
    told = FLOW.unet_timesteps_T
    torch.testing.assert_close(told.flip(0), theirs.timesteps)
    expected = theirs.scale_noise(latents, theirs.timesteps.flip(0)[TIMESTEPS], noise)
    torch.testing.assert_close(add_noise(latents, noise, TIMESTEPS, FLOW), expected)
    # what diffusers' training scripts for flows take as their target
    assert torch.equal(target(latents, noise, TIMESTEPS, FLOW), noise - latents)


def test_edm_noise_and_timesteps_equal_those_of_diffusers(latents_and_noise):
    latents, noise = latents_and_noise
    theirs = EDMEulerScheduler(
        sigma_min=0.002, sigma_max=120.0, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
    )
    theirs.set_timesteps(1000)
    sigmas, told = theirs.sigmas[:-1].flip(0)[TIMESTEPS], theirs.timesteps.flip(0)[TIMESTEPS]
    torch.testing.assert_close(EDM.unet_timesteps_T[TIMESTEPS], told, rtol=1e-4, atol=1e-5)
    sigmas_B111 = sigmas[:, None, None, None]
    noisy = latents + sigmas_B111 * noise
    ours = add_noise(latents, noise, TIMESTEPS, EDM)
    torch.testing.assert_close(ours, theirs.precondition_inputs(noisy, sigmas_B111), rtol=1e-4, atol=1e-5)
    # A UNet that predicts our target is one whose denoised latents, as diffusers reckons them, are the image.
    denoised = theirs.precondition_outputs(noisy, target(latents, noise, TIMESTEPS, EDM), sigmas_B111)
    torch.testing.assert_close(denoised, latents, rtol=1e-3, atol=3e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_steps_in_generating_are_those_of_the_published_pipelines(shift: float):
    ours = make_scheduler("Euler", build_schedule({}, "flow", False, shift=shift), 5)
    even = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2])
    expected = shift * even / (1 + (shift - 1) * even)
    torch.testing.assert_close(ours.sigmas, torch.cat([expected, torch.zeros(1)]))
    torch.testing.assert_close(ours.timesteps, 1000 * expected)


@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [(schedule, sampler) for schedule in (FLOW, EDM) for sampler in samplers_for(schedule.prediction)],
)
def test_samplers_turn_noise_into_the_data_of_a_perfect_model(schedule: NoiseSchedule, sampler: str):
    """Data of one Gaussian: the best prediction is known, and so is the picture that each noise becomes."""
    mean, std = 0.5, 0.3
    scheduler = make_scheduler(sampler, schedule, 200)
    noise = torch.randn((1, 4, 32, 32), generator=torch.Generator().manual_seed(0))
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        inputs = scheduler.scale_model_input(latents, timestep)
        signal, spread = schedule.rates_at(float(timestep))
        variance = signal**2 * std**2 + spread**2
        image = mean + signal * std**2 / variance * (inputs - signal * mean)
        epsilon = (inputs - signal * image) / max(spread, 1e-6)
        predicted = epsilon - image if schedule.prediction == "flow" else signal * epsilon - spread * image
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    torch.testing.assert_close(latents, mean + std * noise, rtol=0, atol=0.03)


@pytest.mark.parametrize("schedule", [FLOW, EDM])
def test_the_picture_while_generating_is_the_image_that_the_prediction_stands_for(schedule, latents_and_noise):
    latents, noise = latents_and_noise
    noisy, wanted = (function(latents, noise, TIMESTEPS, schedule) for function in (add_noise, target))
    bundle = SimpleNamespace(schedule=schedule)
    for row, timestep in enumerate(TIMESTEPS.tolist()):
        told = float(schedule.unet_timesteps_T[timestep])
        shown = Step(1, 1, _clean(bundle, noisy[row], wanted[row], told)).clean()
        torch.testing.assert_close(shown, latents[row], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("schedule", "sampler"), [(FLOW, "Euler a"), (EDM, "DDIM")])
def test_a_sampler_without_a_form_for_the_model_is_refused(schedule: NoiseSchedule, sampler: str):
    with pytest.raises(ConfigError, match=f"{sampler} has no form for a model that predicts .*: take Euler, DPM.. 2M"):
        make_scheduler(sampler, schedule, 5)


@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [(schedule, sampler) for schedule in (FLOW, EDM) for sampler in samplers_for(schedule.prediction)],
)
def test_a_start_picture_is_as_noisy_as_the_step_that_it_enters_at_and_stays_so(schedule: NoiseSchedule, sampler: str):
    one = plan_pass(SimpleNamespace(schedule=schedule), sampler, 10, 0.5, torch.device("cpu"))
    generator = torch.Generator().manual_seed(2)
    picture, noise = (torch.randn((1, 4, 8, 8), generator=generator) for _ in range(2))
    signals = 1.0 - one.scheduler.sigmas if schedule.prediction == "flow" else torch.ones(11)
    latents = one.noisy(picture, noise, one.first)
    torch.testing.assert_close(latents, signals[5] * picture + one.scheduler.sigmas[5] * noise)
    for index in range(one.first, 10):
        one.scheduler.scale_model_input(latents, one.scheduler.timesteps[index])
        latents = one.scheduler.step(noise, one.scheduler.timesteps[index], latents).prev_sample
        kept = one.noisy(picture, noise, index + 1)  # what inpainting puts back
        torch.testing.assert_close(kept, signals[index + 1] * picture + one.scheduler.sigmas[index + 1] * noise)
