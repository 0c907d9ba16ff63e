"""What is evaluated: prompts out of captions and trigger, and the settings' own checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.given import evaluate_config
from sdlora.config.images import CaptionsConfig
from sdlora.data.images import ImageRecord
from sdlora.errors import ConfigError
from sdlora.evaluation.plan import SCENES, choose_prompts

CAPTIONS = CaptionsConfig(trigger="ohwx")


def record(caption: str, captions: CaptionsConfig = CAPTIONS) -> ImageRecord:
    return ImageRecord(Path(f"{caption}.png"), 64, 64, caption, caption, 1, captions=captions)


RECORDS = [record(caption) for caption in ("a cat", "a dog (old)", "a castle", "a boat, ohwx", "a cat", "a hat")]


def chosen(values: dict[str, object] | None = None, records: list[ImageRecord] = RECORDS) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"known": [], "new": [], "plain": []}
    for one in choose_prompts(evaluate_config({"prompts": values or {}}), records[0].captions, records):
        found[one.kind].append(one.prompt)
    return found


def test_known_scenes_are_captions_spread_over_the_images_and_spelled_as_prompts() -> None:
    assert chosen()["known"] == ["ohwx, a cat", "ohwx, a dog \\(old\\)", "ohwx, a castle"]
    assert chosen({"num_known": 2})["known"] == ["ohwx, a cat", "ohwx, a castle"]


def test_new_scenes_have_the_trigger_and_nothing_that_a_caption_speaks_of() -> None:
    assert chosen({"num_new": 2})["new"] == ["ohwx, a red car", "ohwx, an owl in a tree"]
    everything = [record(" ".join(SCENES))]
    assert len(chosen(records=everything)["new"]) == 3


def test_plain_prompts_lack_the_trigger() -> None:
    assert chosen({"num_plain": 4})["plain"] == ["a red car", "a cat", "an owl in a tree", "a dog \\(old\\)"]


def test_without_a_trigger_nothing_is_asked_without_it() -> None:
    records = [record("a cat", CaptionsConfig())]

    assert chosen(records=records)["plain"] == []
    assert chosen(records=records)["new"][0] == "a castle on a hill"


def test_given_prompts_take_the_place_of_those_made_and_each_is_held_against_itself_without_the_trigger() -> None:
    config = evaluate_config({"prompts": {"known": ["ohwx as a king"], "new": ["ohwx on mars"], "plain": ["mars"]}})

    found = choose_prompts(config, CAPTIONS, RECORDS)

    assert [(one.kind, one.prompt, one.bare) for one in found] == [
        ("known", "ohwx as a king", "as a king"),
        ("new", "ohwx on mars", "on mars"),
        ("plain", "mars", "mars"),
    ]


def test_one_checkpoint_stands_for_a_list_of_one() -> None:
    assert evaluate_config({"checkpoints": 500}).checkpoints == (500,)
    assert evaluate_config(None) == EvaluateConfig()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompts": {"num_known": 0, "num_new": 0}}, "prompts.known and prompts.new: nothing to evaluate"),
        ({"prompts": {"known": ["a", " "]}}, "prompts.known.1: is empty"),
        ({"prompts": {"new": ["a"], "num_new": 2}}, "prompts.num_new has no effect beside prompts.new"),
        ({"features": "latents", "features_revision": "main"}, "features_revision has no effect with features=latents"),
        ({"features": " "}, "features: is empty; give latents, auto, a hub name or a folder"),
        ({"checkpoints": [1, 1]}, "checkpoints: 1, 1: a step is named twice"),
        ({"weights": [1, 0.5, 1]}, "weights: 1, 0.5, 1: a weight is named twice"),
        ({"weights": [0.5]}, "weights: a single one has nothing to be compared with"),
        ({"weights": [0.5, 5]}, "weights: 5 is not above 0 and at most 4"),
        ({"num_sedes": 2}, "num_sedes: unknown setting; did you mean 'num_seeds'"),
        ({"weight": 0}, "weight: must be greater than 0"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate_config(values)
    assert said in str(caught.value)
