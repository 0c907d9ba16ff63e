"""Training images in trouble, told from losses that are made up."""

from __future__ import annotations

import pytest
import torch

from sdlora.evaluation import problem_images

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


def test_a_caption_that_fits_better_is_named_with_its_gain() -> None:
    own, others = torch.tensor([1.0, 2.0]), torch.tensor([[1.1, 2.2], [0.5, 1.2]])

    found = problem_images.swapped(own, others)

    assert found.best_other == 1
    assert found.gain == pytest.approx((0.5 + 0.4) / 2)
    # Its losses lie 0.2 and 0.3 above the others' mean; those lie 0.3 and 0.5 from theirs.
    assert found.fit == pytest.approx((-0.2 / 0.3 - 0.3 / 0.5) / 2)


def test_likeness_to_the_others_leaves_the_image_itself_out() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    assert problem_images.likeness_to_others(features).tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_a_caption_is_doubtful_that_neither_model_finds_fitting() -> None:
    by_base, by_adapter = torch.tensor([0.0, 0.0, 0.2]), torch.tensor([0.0, 5.0, 5.0])

    assert problem_images.doubt([by_base, by_adapter]).argsort(descending=True).tolist() == [0, 1, 2]


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
