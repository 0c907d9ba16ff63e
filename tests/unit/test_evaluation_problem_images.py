"""Training images in trouble, told from losses that are made up."""

from __future__ import annotations

import pytest
import torch

from sdlora.evaluation import loss_measures, problem_images

NAMES = ["a.png", "b.png", "c.png", "d.png"]


def test_an_image_is_hard_by_its_loss_against_others_with_the_same_timestep_and_noise() -> None:
    by_timestep = torch.tensor([0.01, 1.0])  # late timesteps have a hundredth of the loss, and count the same
    losses = torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]]) * by_timestep

    assert problem_images.normalised(losses).tolist() == pytest.approx([0.75, 0.75, 1.5])


def test_what_was_learned_is_the_share_of_the_bases_loss_that_is_left() -> None:
    found = problem_images.relative(torch.tensor([[0.5, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))

    assert found.tolist() == pytest.approx([0.5, 1.0])


def test_what_stands_out_is_measured_by_the_spread_of_the_others() -> None:
    found = problem_images.outlying(torch.tensor([1.0, 1.1, 0.9, 1.05, 5.0]))

    assert int(found.argmax()) == 4
    assert found[4] > 20
    assert problem_images.outlying(torch.ones(3)).tolist() == [0, 0, 0]
    assert int(problem_images.outlying(torch.tensor([1.0, 1.0, 1.0, 2.0])).argmax()) == 3


def test_a_caption_fits_by_what_is_left_of_image_and_caption() -> None:
    image_N, caption_M = torch.arange(9.0), torch.arange(9.0).flip(0) ** 2
    losses_NM = image_N[:, None] + caption_M  # busy images and long captions cost more, whatever belongs together
    for image, caption in enumerate((1, 1, 2, 3, 4, 5, 6, 7, 8)):  # the first image has another one's caption
        losses_NM[image, caption] -= 0.1
    by_draw = torch.stack([losses_NM, 10 * losses_NM], dim=-1)

    found = problem_images.misfits(by_draw)

    assert [int(row.argmin()) for row in found] == [1, 1, 2, 3, 4, 5, 6, 7, 8]
    assert int(found.diagonal().argmax()) == 0


def test_captions_are_tried_in_groups_of_even_size_and_doubted_by_all_models() -> None:
    captions = ["a cat", "a cat", *(f"thing {number}" for number in range(9))]
    groups = loss_measures._Swaps.plan(captions, 4, 0).groups
    assert sorted(len(group) for group in groups) == [3, 4, 4]
    assert sorted(place for group in groups for place in group) == list(range(11))
    assert groups == loss_measures._Swaps.plan(captions, 4, 0).groups

    swaps = loss_measures._Swaps.plan(captions, 12, 0)
    right = {**dict(enumerate(captions)), 5: "thing 6"}
    losses_JK = torch.tensor([[0.5 if text == right[place] else 1.0] for place, text in swaps.jobs])
    doubts, sentences = swaps.judged([losses_JK, losses_JK])
    assert int(doubts.argmax()) == 5
    assert sentences[5].startswith("'thing 6' fits better than its caption 'thing 3', by ")
    assert sentences[6].startswith("its caption 'thing 4' fits best of 10, by ")


def test_likeness_to_the_others_leaves_the_image_itself_out() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    assert problem_images.likeness_to_others(features).tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_images_are_ranked_by_kind_and_clear_causes_named_before_what_only_shows() -> None:
    hard = problem_images.ranked("hardest", NAMES, torch.tensor([0.0, 6.0, 1.0, 2.5]), ["-"] * 4)
    wrong = problem_images.ranked("mislabelled", NAMES, torch.tensor([5.0, 0.0, 1.5, 0.0]), ["+"] * 4)

    assert [one.name for one in hard] == ["b.png", "d.png", "c.png", "a.png"]
    worst = problem_images.worst({"hardest": hard, "mislabelled": wrong}, 4)
    assert [(one.name, one.kind) for one in worst] == [
        ("a.png", "mislabelled"),
        ("b.png", "hardest"),
        ("d.png", "hardest"),
        ("c.png", "mislabelled"),
    ]
    assert len(problem_images.worst({"hardest": hard}, 2)) == 2
