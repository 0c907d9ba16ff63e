"""Several triggers in one adapter: whose prompts bring what, told by likenesses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdlora.config import files
from sdlora.config.evaluate import CharactersConfig, EvaluateConfig
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.images import ImageRecord, scan
from sdlora.errors import ConfigError
from sdlora.evaluation.characters import Character, compare, find_characters, prompts_of
from sdlora.evaluation.plan import EvaluatedPrompt

ANN, BOB = Character("ann", (0, 1)), Character("bob", (2, 3))


def directed(*weights: float) -> Tensor:
    """A feature of unit length along base, ann and bob."""
    feature_D = torch.tensor(weights, dtype=torch.float32)
    return feature_D / feature_D.norm()


def images(*weights: float) -> Tensor:
    """Three images of it that differ a little."""
    noise_ND = 0.01 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    return directed(*weights).repeat(3, 1) + noise_ND


TRAINING_MD = torch.stack([directed(0, 1, 0), directed(0.2, 1, 0), directed(0, 0, 1), directed(0.2, 0, 1)])


def test_a_trigger_that_brings_another_one_leaks_and_one_that_does_not_does_not() -> None:
    by_trigger = {"ann": images(1, 1, 0), "bob": images(1, 1, 1)}
    found = {(one.asked, one.other): one for one in compare([ANN, BOB], images(1, 0, 0), by_trigger, TRAINING_MD)}
    of_bob, of_ann = found["ann", "bob"], found["bob", "ann"]
    assert of_bob.brought is not None
    assert of_ann.brought is not None
    assert of_bob.brought.value == pytest.approx(0, abs=0.15)
    assert of_ann.brought.value > 0.6
    assert (of_bob.leaks, of_ann.leaks) == (False, True)
    assert of_ann.sentence.startswith("'bob' brings ")
    assert of_ann.sentence.endswith("in common; it leaks")


def test_what_the_training_images_have_in_common_is_no_leak() -> None:
    alike_MD = torch.stack([directed(0, 1, 0.9), directed(0.1, 1, 0.9), directed(0, 0.9, 1), directed(0.1, 0.9, 1)])
    by_trigger = {"ann": images(1, 1, 0.5), "bob": images(1, 0.5, 1)}
    found = compare([ANN, BOB], images(1, 0, 0), by_trigger, alike_MD)
    assert all(one.alike is not None and one.alike > 0.95 for one in found)
    assert not any(one.leaks for one in found)


def test_nothing_is_told_where_the_other_one_was_not_learned() -> None:
    by_trigger = {"ann": images(1, 1, 0), "bob": images(1, 0, 0)}
    found = {(one.asked, one.other): one for one in compare([ANN, BOB], images(1, 0, 0), by_trigger, TRAINING_MD)}
    assert found["ann", "bob"].brought is None
    assert found["ann", "bob"].sentence.endswith("hardly shows, so nothing can be told")


def test_each_trigger_is_asked_for_in_the_same_scenes() -> None:
    asked = [EvaluatedPrompt("new", "ann, a castle", "a castle"), EvaluatedPrompt("known", "ann", "")]
    assert [one.prompt for one in prompts_of("bob", asked)] == ["bob, a castle", "bob"]


@pytest.fixture
def records(tiny_images: Path) -> list[ImageRecord]:
    found = scan(ImagesConfig(folder=tiny_images), CaptionsConfig()).records
    return [
        replace(one, captions=CaptionsConfig(trigger="ann" if place < 4 else "bob")) for place, one in enumerate(found)
    ]


def test_triggers_are_those_of_the_folders_or_words_of_the_captions(records: list[ImageRecord]) -> None:
    found = find_characters(CharactersConfig(), records)
    assert [(one.trigger, len(one.places)) for one in found] == [("ann", 4), ("bob", 6)]
    named = find_characters(CharactersConfig(triggers=("shape 1", "shape 2")), records)
    assert [len(one.places) for one in named] == [1, 1]
    with pytest.raises(ConfigError, match=r"takes two triggers or more, and the run has one, ann; name them"):
        find_characters(CharactersConfig(), records[:4])
    with pytest.raises(ConfigError, match=r"characters\.triggers: no caption has zoe"):
        find_characters(CharactersConfig(triggers=("shape 1", "zoe")), records)
    with pytest.raises(ConfigError, match="one is named twice"):
        files.validate({"characters": {"triggers": ["ann", "ann"]}}, "it", EvaluateConfig)
