"""Scores of evaluated images, each formula on features whose answer is known."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image

from sdlora.evaluation import scores
from sdlora.evaluation.features import tones
from sdlora.evaluation.losses import prompt_gain, timesteps

NORTH, EAST, SOUTH = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0])


def test_likeness_is_the_mean_cosine_of_all_pairs_whatever_the_lengths() -> None:
    generated, training = torch.stack([3 * NORTH, EAST]), torch.stack([NORTH, 5 * NORTH])

    assert scores.likeness(generated, training) == pytest.approx(0.5)


def test_adherence_compares_each_image_with_its_own_prompt() -> None:
    found = scores.adherence(torch.stack([NORTH, EAST]), torch.stack([NORTH, NORTH]))

    assert found.tolist() == pytest.approx([1.0, 0.0])


def test_diversity_is_the_distance_between_seeds_of_one_prompt() -> None:
    alike, different = torch.stack([NORTH, NORTH]), torch.stack([NORTH, SOUTH])

    assert scores.diversity(torch.stack([alike, different])) == pytest.approx((0 + 2) / 2)
    assert scores.diversity(torch.stack([NORTH, EAST])[:, None]) is None


def test_leak_is_one_where_the_adapter_moves_an_image_as_far_as_another_seed() -> None:
    base = torch.stack([NORTH, EAST])

    assert scores.leak(base, base, base_diversity=1.0) == pytest.approx(0.0)
    assert scores.leak(torch.stack([EAST, NORTH]), base, base_diversity=1.0) == pytest.approx(1.0)


def test_an_image_is_a_copy_below_the_least_distance_between_training_images() -> None:
    training = torch.tensor([[0.0], [1.0], [4.0]])
    threshold = scores.copy_threshold(scores.euclidean(training, training))
    found = scores.nearest(scores.euclidean(torch.tensor([[3.9], [2.4], [-1.0]]), training))

    assert threshold == pytest.approx(1.0)
    assert found.places_N.tolist() == [2, 1, 0]
    assert scores.is_copy(found.distances_N, threshold).tolist() == [True, False, False]


def test_images_that_are_in_the_set_twice_set_no_threshold() -> None:
    training = torch.tensor([[0.0], [0.0], [1.0], [4.0]])

    assert scores.copy_threshold(scores.euclidean(training, training)) == pytest.approx(1.0)
    assert scores.copy_threshold(torch.zeros(1, 1)) is None
    assert scores.copy_threshold(torch.zeros(2, 2)) is None
    assert not scores.is_copy(torch.zeros(2), None).any()


def test_features_are_standardised_over_the_images_at_hand() -> None:
    reference = torch.tensor([[0.0, 10.0, 7.0], [2.0, 30.0, 7.0]])

    found = scores.standardised(reference, reference)

    assert found.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert found[0].tolist() == pytest.approx([-(0.5**0.5), -(0.5**0.5), 0.0])  # one that is constant counts nothing


def test_saturation_and_contrast_know_grey_from_colour_and_flat_from_striped() -> None:
    stripes = numpy.zeros((8, 8, 3), numpy.uint8)
    stripes[::2] = 255

    assert tones.saturation(Image.new("RGB", (8, 8), (200, 200, 200))) == 0
    assert tones.saturation(Image.new("RGB", (8, 8), (255, 0, 0))) == pytest.approx(1)
    assert tones.contrast(Image.new("RGB", (8, 8), (200, 10, 90))) == 0
    assert tones.contrast(Image.fromarray(stripes)) == pytest.approx(0.5)


def test_burned_is_what_is_above_all_training_and_base_images() -> None:
    tones_N2, reference = torch.tensor([[0.2, 0.2], [0.53, 0.2], [0.56, 0.2]]), torch.tensor([[0.0, 0.1], [0.5, 0.3]])

    assert scores.is_burned(tones_N2, reference).tolist() == [[False, False], [False, False], [True, False]]


def test_relative_loss_has_an_interval_that_shared_noise_doesnt_widen() -> None:
    noise = 1 + torch.rand(4, 16, generator=torch.Generator().manual_seed(0))

    same = scores.relative_loss(0.8 * noise, noise)
    other = scores.relative_loss(0.8 * noise.flip(1), noise)

    assert (same.value, same.low, same.high) == pytest.approx((0.8, 0.8, 0.8))
    assert other.low < 0.8 < other.high
    assert scores.relative_loss(0.8 * noise.flip(1), noise) == other


def test_a_prompts_gain_is_the_share_of_the_error_that_it_explains_and_never_below_nothing() -> None:
    found = prompt_gain(torch.tensor([[0.5, 1.0], [2.0, 2.0]]), torch.tensor([[1.0, 2.0], [1.0, 1.0]]))

    assert found.tolist() == pytest.approx([0.5, 0.0])


def test_timesteps_are_spread_evenly_and_leave_the_ends_out() -> None:
    assert timesteps(3, 1001, (0.2, 0.6)) == [200, 400, 600]
    assert timesteps(1, 1001, (0.2, 0.6)) == [400]
    assert 0 < timesteps(8, 1000)[0] < timesteps(8, 1000)[-1] < 999
