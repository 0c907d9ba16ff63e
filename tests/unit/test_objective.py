"""The parts of the loss that have no outside reference: masks, class images, number types."""

from __future__ import annotations

import pytest
import torch

from sdlora.config.objective import ObjectiveConfig
from sdlora.models.schedule import NoiseSchedule
from sdlora.training.loss.objective import image_weights, loss_per_image, masked_mean

ALPHAS = torch.linspace(0.99, 0.01, 1000)


def losses(predicted: torch.Tensor, **options) -> torch.Tensor:
    timesteps = torch.full((len(predicted),), 500)
    return loss_per_image(
        predicted,
        torch.zeros_like(predicted),
        timesteps,
        ObjectiveConfig(),
        schedule=NoiseSchedule.of_alphas(ALPHAS),
        **options,
    )


def test_loss_is_the_same_for_a_small_and_a_large_mask_over_the_same_error():
    small, large = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    small[0, 2:4, 2:4] = 1
    values = losses(torch.full((2, 4, 8, 8), 3.0), mask_B1HW=torch.stack([small, large]))
    torch.testing.assert_close(values, torch.tensor([9.0, 9.0]))


def test_what_lies_outside_the_mask_has_no_effect_and_no_gradient():
    predicted = torch.randn(1, 4, 8, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    losses(predicted, mask_B1HW=mask).sum().backward()
    assert predicted.grad[..., 4:].abs().max() == 0
    assert predicted.grad[..., :4].abs().min() > 0


def test_unmasked_weight_counts_the_outside_by_that_factor():
    distance = torch.ones(1, 2, 2, 2)
    distance[..., 1] = 5.0
    mask = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    expected = (1 * 4 + 0.25 * 5 * 4) / (4 + 0.25 * 4)
    assert masked_mean(distance, mask, 0.25).item() == pytest.approx(expected)


def test_full_mask_equals_no_mask():
    predicted = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(losses(predicted, mask_B1HW=torch.ones(3, 1, 8, 8)), losses(predicted))


def test_empty_mask_gives_loss_zero_and_no_gradient():
    predicted = torch.randn(1, 4, 8, 8, requires_grad=True)
    value = losses(predicted, mask_B1HW=torch.zeros(1, 1, 8, 8))
    value.sum().backward()
    assert value.item() == 0
    assert predicted.grad.abs().max() == 0


def test_non_finite_prediction_outside_the_mask_is_not_hidden():
    predicted = torch.zeros(1, 4, 8, 8)
    predicted[0, 0, 7, 7] = torch.nan
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :4] = 1
    assert torch.isnan(losses(predicted, mask_B1HW=mask)).all()


def test_half_precision_predictions_are_compared_in_full_precision():
    predicted = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    value = losses(predicted)
    assert value.dtype == torch.float32
    assert value.item() == 90_000  # 300 squared overflows fp16


def test_class_images_have_the_prior_weight():
    weights = image_weights(torch.tensor([False, True]), ObjectiveConfig(prior_weight=0.3))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.3]))
