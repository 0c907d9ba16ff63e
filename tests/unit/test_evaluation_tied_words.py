"""Words beside the trigger: which are looked at, and what likenesses tell of them."""

from __future__ import annotations

import pytest
import torch

from sdlora.config import files
from sdlora.config.evaluate import EvaluateConfig
from sdlora.errors import ConfigError
from sdlora.evaluation.plan import EvaluatedPrompt
from sdlora.evaluation.tied_words import Word, compare, prompts_of, words_beside


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a fox, red background", "a fox jumping, red background, grass"], ["red background", "fox"]),
        (["sitting on a red chair", "asleep on the red chair", "a red chair", "a chair"], ["chair", "red chair"]),
        (["1girl, smile, simple background"] * 5 + ["1girl, crying"], ["1girl", "simple background", "smile"]),
        (["a photo of", "a picture of"], []),
        (["", ""], []),
    ],
)
def test_the_longest_phrases_that_most_captions_have_are_looked_at(texts: list[str], words: list[str]) -> None:
    assert words_beside(texts, 0.75, 5) == words
    assert words_beside(texts, 0.75, 1) == words[:1]


def test_prompts_put_the_word_beside_the_trigger_and_in_its_place() -> None:
    asked = [EvaluatedPrompt("new", "zwx, a castle", "a castle")]
    together, alone = prompts_of("red light", asked)
    assert [one.prompt for one in together] == ["zwx, a castle, red light"]
    assert [one.prompt for one in alone] == ["red light, a castle"]
    assert {one.bare for one in (*together, *alone)} == {"a castle"}


def test_shares_are_of_what_both_bring_above_the_base() -> None:
    # Cosines to the one training image that has the word: 0 of the base, 0.8 of both, 0.6 and 0.2 of each alone.
    def images(cosine: float) -> torch.Tensor:
        return torch.tensor([[cosine, (1 - cosine**2) ** 0.5]]).repeat(3, 1)

    training_MD = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    base, without, together, alone = map(images, (0.0, 0.6, 0.8, 0.2))
    found = compare(Word("red", (1,)), base, without, together, alone, training_MD)
    assert found.without is not None
    assert found.without.value == pytest.approx(0.75)
    assert found.sentence == (
        "'red' stands in 50% of the captions: the trigger keeps 75% (75% to 75%) without it, and it brings 25% (25% to "
        "25%) by itself"
    )
    for nothing in (compare(Word("red", (1,)), base, without, base, alone, training_MD),
                    compare(Word("red", ()), base, without, together, alone, training_MD)):  # fmt: skip
        assert nothing.without is None
        assert nothing.sentence.endswith("what was learned hardly shows with it, so nothing can be told")


def test_settings_that_contradict_each_other_are_refused() -> None:
    values = {"tied_words": {"words": ["red", " "], "share": 0.5}}
    with pytest.raises(ConfigError) as raised:
        files.validate(values, "it", EvaluateConfig)
    assert "tied_words.words.1: is empty" in str(raised.value)
    assert "tied_words.share and tied_words.most have no effect beside tied_words.words" in str(raised.value)
