"""Losses and weights by timestep against numpy in double precision, torch's own losses, and each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from sdlora.config.objective import ObjectiveConfig
from sdlora.models.schedule import NoiseSchedule
from sdlora.training.loss.diffusion import add_noise, signal_and_noise_rates, target
from sdlora.training.loss.objective import (
    debiased_weights,
    huber_delta,
    loss_per_image,
    min_snr_weights,
    pseudo_huber,
    timestep_weights,
)

ALPHAS = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
EPSILON, VELOCITY = (NoiseSchedule.of_alphas(ALPHAS, prediction) for prediction in ("epsilon", "v_prediction"))
TIMESTEPS = torch.tensor([0, 100, 500, 999])


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn((4, 4, 5, 7), generator=generator), torch.randn((4, 4, 5, 7), generator=generator)


def plain_loss(pair, **settings) -> torch.Tensor:
    return loss_per_image(*pair, TIMESTEPS, ObjectiveConfig(**settings), schedule=EPSILON)


@pytest.mark.parametrize(("loss", "reference"), [("mse", mse_loss), ("l1", l1_loss)])
def test_plain_losses_equal_those_of_torch(pair, loss, reference):
    expected = torch.stack([reference(p, t) for p, t in zip(*pair, strict=True)])
    torch.testing.assert_close(plain_loss(pair, loss=loss), expected)


def test_huber_loss_equals_numpy_in_double_precision(pair):
    predicted, wanted = (tensor.double().numpy() for tensor in pair)
    alphas = ALPHAS.double().numpy()[TIMESTEPS.numpy()]
    sigma = np.sqrt((1 - alphas) / alphas)
    delta = ((1 - 0.1) / (1 + sigma) ** 2 + 0.1)[:, None, None, None]
    residual = predicted - wanted
    expected = (2 * delta * (np.sqrt(residual**2 + delta**2) - delta)).mean(axis=(1, 2, 3))
    ours = plain_loss(pair, loss="huber", huber_delta=0.1, huber_schedule="snr")
    np.testing.assert_allclose(ours.double().numpy(), expected, rtol=1e-5)


def test_pseudo_huber_is_close_to_torchs_huber_for_small_and_large_residuals():
    small, large, delta = torch.tensor([1e-4, -3e-3]), torch.tensor([40.0, -900.0]), 0.3
    for residual, rtol in ((small, 1e-3), (large, 1e-2)):
        huber = 2 * huber_loss(residual, torch.zeros(2), reduction="none", delta=delta)
        torch.testing.assert_close(pseudo_huber(residual, delta), huber, rtol=rtol, atol=0)


def test_pseudo_huber_keeps_its_precision_where_the_textbook_form_cancels():
    residual = np.array([1e-5, 1e-4, 1e-3])
    exact = 2 * (np.sqrt(residual.astype(np.longdouble) ** 2 + 1) - 1)
    ours = pseudo_huber(torch.tensor(residual, dtype=torch.float32), 1.0)
    np.testing.assert_allclose(ours.double().numpy(), exact.astype(float), rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda t, alpha: 0.2 + 0 * t),
        ("exponential", lambda t, alpha: np.exp(np.log(0.2) * t / 1000)),
        ("snr", lambda t, alpha: (1 - 0.2) / (1 + np.sqrt((1 - alpha) / alpha)) ** 2 + 0.2),
    ],
)
def test_huber_schedules_equal_their_published_formulas(schedule, expected):
    alphas = ALPHAS.double().numpy()[TIMESTEPS.numpy()]
    ours = huber_delta(TIMESTEPS, EPSILON, 0.2, schedule)
    np.testing.assert_allclose(ours.double().numpy(), expected(TIMESTEPS.double().numpy(), alphas), rtol=1e-5)


def test_min_snr_weights_equal_the_paper():
    snr = np.array([0.0047, 0.5, 5.0, 80.0, 1175.0])
    ours = min_snr_weights(torch.tensor(snr, dtype=torch.float32), 5.0, "epsilon")
    np.testing.assert_allclose(ours.numpy(), np.minimum(snr, 5.0) / snr, rtol=1e-6)
    ours = min_snr_weights(torch.tensor(snr, dtype=torch.float32), 5.0, "v_prediction")
    np.testing.assert_allclose(ours.numpy(), np.minimum(snr, 5.0) / (snr + 1), rtol=1e-6)


def test_debiased_weights_equal_the_paper():
    snr = np.array([0.0047, 0.5, 1175.0])
    ours = debiased_weights(torch.tensor(snr, dtype=torch.float32), "epsilon")
    np.testing.assert_allclose(ours.numpy(), 1 / np.sqrt(snr), rtol=1e-6)


@pytest.mark.parametrize("prediction", ["v_prediction", "flow", "edm_v"])
@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased"])
def test_all_predictions_of_one_model_have_the_same_weighted_loss(pair, weighting, prediction):
    """The same wrong image, told as epsilon, v or a flow's velocity, must cost the same at the same share of noise."""
    image, wrong = (tensor.double() for tensor in pair)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    losses = []
    for schedule in (EPSILON, same_noise_as(EPSILON, prediction)):
        signal, spread = (rate.double()[TIMESTEPS, None, None, None] for rate in (schedule.signal_T, schedule.spread_T))
        noisy = signal * image + spread * noise
        predicted = {
            "epsilon": (noisy - signal * wrong) / spread,
            "flow": (noisy - wrong) / spread,
        }.get(schedule.prediction, (signal * noisy - wrong) / spread)
        losses.append(
            loss_per_image(
                predicted,
                target(image, noise, TIMESTEPS, schedule),
                TIMESTEPS,
                ObjectiveConfig(weighting=weighting),
                schedule=schedule,
            )
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=1e-6)


def same_noise_as(schedule: NoiseSchedule, prediction: str) -> NoiseSchedule:
    """The same ratio of image and noise at each timestep, for another prediction."""
    total = schedule.signal_T + schedule.spread_T if prediction == "flow" else 1.0
    return dataclasses.replace(
        schedule, signal_T=schedule.signal_T / total, spread_T=schedule.spread_T / total, prediction=prediction
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased"])
@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_everything_is_finite_at_zero_terminal_snr(prediction, weighting, loss):
    schedule = same_noise_as(NoiseSchedule.of_alphas(torch.tensor([0.9, 0.5, 0.0])), prediction)
    objective = ObjectiveConfig(loss=loss, weighting=weighting, huber_schedule="snr")
    timesteps = torch.tensor([0, 1, 2])
    assert torch.isfinite(timestep_weights(timesteps, objective, schedule)).all()
    predicted = torch.randn((3, 4, 2, 2), requires_grad=True)
    losses = loss_per_image(predicted, torch.zeros(3, 4, 2, 2), timesteps, objective, schedule=schedule)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(predicted.grad).all()


def test_smooth_l1_is_huber_over_its_turning_point(pair):
    settings = {"huber_delta": 0.2, "huber_schedule": "constant"}
    expected = plain_loss(pair, loss="huber", **settings) / 0.2
    torch.testing.assert_close(plain_loss(pair, loss="smooth_l1", **settings), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_soft_min_snr_is_the_smooth_cap_of_crowson_et_al(prediction):
    objective = ObjectiveConfig(weighting="soft_min_snr", min_snr_gamma=4.0)
    schedule = NoiseSchedule.of_alphas(ALPHAS, prediction)
    got = timestep_weights(TIMESTEPS, objective, schedule).double()
    alphas = ALPHAS.double()[TIMESTEPS]
    ratio = alphas / (1 - alphas)
    on_x0 = 1 / (1 / ratio + 1 / 4.0)  # their weight on a loss in x0
    in_terms_of = {"epsilon": ratio, "v_prediction": ratio + 1}[prediction]
    torch.testing.assert_close(got, on_x0 / in_terms_of, rtol=1e-5, atol=0)
    hard = timestep_weights(TIMESTEPS, ObjectiveConfig(weighting="min_snr", min_snr_gamma=4.0), schedule)
    assert (got <= hard.double() + 1e-9).all()


def test_a_v_loss_like_epsilon_weighs_the_same_error_as_epsilon_does(pair):
    """The same wrong x0, told in v and in epsilon, costs the same at every timestep."""
    clean, wrong = pair
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    noisy = add_noise(clean, noise, TIMESTEPS, EPSILON)
    signal, spread = (rate[:, None, None, None] for rate in signal_and_noise_rates(EPSILON, TIMESTEPS))
    epsilon = (noisy - signal * wrong) / spread
    v = signal * epsilon - spread * wrong
    as_epsilon = loss_per_image(epsilon, noise, TIMESTEPS, ObjectiveConfig(), schedule=EPSILON)
    as_v = loss_per_image(
        v,
        target(clean, noise, TIMESTEPS, VELOCITY),
        TIMESTEPS,
        ObjectiveConfig(v_loss_like_epsilon=True),
        schedule=VELOCITY,
    )
    torch.testing.assert_close(as_v, as_epsilon, rtol=1e-3, atol=1e-5)
