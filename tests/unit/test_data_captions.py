"""What becomes of a caption: trigger, wildcards, tags, dropout."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora.config.images import CaptionsConfig
from sdlora.data.captions import has_trigger, render, split_tags, variants, without_trigger


def once(caption: str, seed: int = 0, **settings: object) -> str:
    return render(caption, CaptionsConfig(**settings), random.Random(seed))


def often(caption: str, times: int = 400, **settings: object) -> Counter[str]:
    config = CaptionsConfig(**settings)
    return Counter(render(caption, config, random.Random(seed)) for seed in range(times))


def test_a_plain_caption_stays_as_it_is() -> None:
    assert once("A cat,  (on a mat:1.2), [x]") == "A cat,  (on a mat:1.2), [x]"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cat", "sks, a cat"),
        ("", "sks"),
        ("a photo of sks cat", "a photo of sks cat"),
        ("1girl, SKS, smile", "1girl, SKS, smile"),
        ("asks for more", "sks, asks for more"),
        ("sks-like", "sks, sks-like"),
        ("(sks:1.2), cat", "(sks:1.2), cat"),
    ],
)
def test_the_trigger_is_put_in_front_unless_it_is_there_as_a_whole_word(caption: str, expected: str) -> None:
    assert once(caption, trigger="sks") == expected


def test_a_trigger_with_special_characters_is_taken_literally() -> None:
    assert has_trigger("a c++ (v1) mug", "c++ (v1)")
    assert not has_trigger("a cpp v1 mug", "c++ (v1)")


def test_a_trigger_in_the_prefix_is_not_doubled() -> None:
    assert once("a cat", trigger="sks", prefix="photo of sks:") == "photo of sks: a cat"


def test_prefix_and_suffix_go_around_the_caption() -> None:
    assert once("a cat", prefix="photo of", suffix=", 35mm", trigger="sks") == "photo of sks, a cat , 35mm"
    assert once("", prefix="photo", suffix="35mm") == "photo 35mm"


def test_without_wildcards_lines_are_joined_and_braces_are_text() -> None:
    assert once("a cat\n\n on a {red|green} mat \n") == "a cat, on a {red|green} mat"
    assert once("a\nb", separator=" | ") == "a | b"


def test_wildcards_pick_one_line_and_one_of_each_alternative() -> None:
    counts = often("a {red|green} cat\na {small|} dog", wildcards=True)
    assert set(counts) == {"a red cat", "a green cat", "a small dog", "a dog"}
    assert min(counts.values()) > 60


def test_nested_alternatives_and_single_braces() -> None:
    assert set(often("{a {tiny|huge} cat|a dog} {x}", wildcards=True)) == {
        "a tiny cat {x}",
        "a huge cat {x}",
        "a dog {x}",
    }


def test_wildcards_mean_the_same_as_in_prompts() -> None:
    counts = often("a {3::red|green} ball, {2$$a|b|c}", wildcards=True)
    pairs = ("a, b", "b, a", "a, c", "c, a", "b, c", "c, b")
    assert set(counts) == {f"a {colour} ball, {two}" for colour in ("red", "green") for two in pairs}
    red = sum(number for text, number in counts.items() if "red" in text) / sum(counts.values())
    assert 0.65 < red < 0.85
    assert set(often("{0-1$$ and $$a|0::b} {k}", wildcards=True)) == {"a {k}", "{k}"}


def test_plain_alternatives_are_picked_as_they_ever_were() -> None:
    settings = CaptionsConfig(wildcards=True, shuffle_tags=True, tag_dropout=0.2, dropout=0.05)
    caption = "a {red|green|} {cat|{tiny|huge } dog}, on a {mat|{b}}, c, d\nother {x | y}, { z }"
    texts = "\n".join(render(caption, settings, random.Random(seed)) for seed in range(2000))
    assert hashlib.sha256(texts.encode()).hexdigest().startswith("03e8190f6c2f")


def test_an_empty_caption_survives_wildcards() -> None:
    assert once("", wildcards=True) == ""


def test_shuffling_keeps_the_first_tags_in_place_the_trigger_among_them() -> None:
    counts = often("a, b, c, d", shuffle_tags=True, keep_tags=2, trigger="sks")
    assert len(counts) == 6
    assert all(text.startswith("sks, a, ") for text in counts)


@given(
    tags=st.lists(st.text("abcdef", min_size=1, max_size=4), max_size=8),
    keep=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_shuffling_loses_and_adds_no_tag(tags: list[str], keep: int, seed: int) -> None:
    config = CaptionsConfig(shuffle_tags=True, keep_tags=keep)
    shuffled = split_tags(render(", ".join(tags), config, random.Random(seed)), config)
    assert sorted(shuffled) == sorted(tags)
    assert shuffled[:keep] == tags[:keep]


def test_tag_dropout_spares_kept_tags_and_the_trigger() -> None:
    counts = often("a, b, c", tag_dropout=0.5, keep_tags=1)
    assert {"a", "a, b", "a, c", "a, b, c"} == set(counts)
    assert once("a, b", tag_dropout=1, trigger="sks") == "sks"
    assert once("a, b", tag_dropout=1) == ""


def test_caption_dropout_empties_the_whole_caption() -> None:
    counts = often("a cat", dropout=0.25, prefix="photo", trigger="sks", times=2000)
    assert set(counts) == {"", "photo sks, a cat"}
    assert counts[""] / 2000 == pytest.approx(0.25, abs=0.03)


def test_weighted_groups_stay_together_when_weights_are_on() -> None:
    text = r"(red, blue:1.2), a \(b, c, [d, e]"
    weighted = CaptionsConfig(weights=True)
    assert split_tags(text, weighted) == ["(red, blue:1.2)", r"a \(b", "c", "[d, e]"]
    assert split_tags("(a, b)", CaptionsConfig(weights=False)) == ["(a", "b)"]
    assert split_tags("smile :(, hat, b)", weighted) == ["smile :(, hat, b)"]
    assert split_tags("frown :(, hat", weighted) == ["frown :(", "hat"], "an emoticon opens no group"


@pytest.mark.parametrize(
    ("separator", "tags"),
    [(",", ["a b", "c|d"]), (" | ", ["a b, c", "d"]), (" ", ["a", "b,", "c|d"]), ("", ["a b, c|d"])],
)
def test_any_separator_works(separator: str, tags: list[str]) -> None:
    assert split_tags("a b, c|d", CaptionsConfig(separator=separator)) == tags


def test_the_same_generator_gives_the_same_caption() -> None:
    settings = {"shuffle_tags": True, "tag_dropout": 0.3, "dropout": 0.1, "wildcards": True}
    caption = "{a|b}, c, d, e\nf, g"
    assert [once(caption, seed, **settings) for seed in range(50)] == [
        once(caption, seed, **settings) for seed in range(50)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.5},
        {"wildcards": True},
        {"wildcards": True, "dropout": 0.5, "trigger": "b", "prefix": "p"},
    ],
)
def test_variants_are_exactly_what_render_can_give(settings: dict[str, object]) -> None:
    caption = "{a|b|} {c|{d|e}}\nf\ng {1-2$$ and $$3::h|i|0::k}"
    config = CaptionsConfig(**settings)
    listed = variants(caption, config)
    assert listed is not None
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(often(caption, times=1000, **settings))


def test_endless_variants_are_not_listed() -> None:
    assert variants("a, b", CaptionsConfig(shuffle_tags=True)) is None
    assert variants("a, b", CaptionsConfig(tag_dropout=0.1)) is None
    for many in ("{a|b}" * 30, "{0-5000$$" + "|".join(map(str, range(5000))) + "}"):
        assert variants(many, CaptionsConfig(wildcards=True)) is None


def test_brackets_are_text_unless_weights_are_asked_for() -> None:
    assert CaptionsConfig().weights is False
    caption = "saber (fate), hatsune miku (vocaloid), :(, hat"
    assert render(caption, CaptionsConfig(), random.Random(0)) == caption
    assert split_tags(caption, CaptionsConfig()) == ["saber (fate)", "hatsune miku (vocaloid)", ":(", "hat"]


def test_tags_before_the_keep_separator_and_behind_the_second_stay_in_their_place() -> None:
    config = CaptionsConfig(keep_separator="|||", shuffle_tags=True)
    texts = {
        render("1girl, saber ||| red, hat, tree ||| best, detailed", config, random.Random(seed)) for seed in range(60)
    }
    assert all(text.startswith("1girl, saber, ") and text.endswith(", best, detailed") for text in texts)
    assert len(texts) == 6
    assert all("|||" not in text for text in texts)


def test_the_keep_separator_is_never_trained_even_when_nothing_is_shuffled() -> None:
    config = CaptionsConfig(keep_separator="|||")
    assert render("1girl, ||| red, hat", config, random.Random(0)) == "1girl, red, hat"
    assert variants("1girl ||| red", config) == ["1girl, red"]


def test_captions_without_the_keep_separator_follow_keep_tags() -> None:
    config = CaptionsConfig(keep_separator="|||", keep_tags=1, shuffle_tags=True)
    assert all(render("one, two, three", config, random.Random(seed)).startswith("one, ") for seed in range(20))


def test_a_group_is_shuffled_and_dropped_as_one_tag() -> None:
    config = CaptionsConfig(group_separator=";;;", shuffle_tags=True, tag_dropout=0.5)
    texts = [render("red;;;hat, tree, sky", config, random.Random(seed)) for seed in range(100)]
    assert all(("red, hat" in text) or ("red" not in text and "hat" not in text) for text in texts)


def test_protected_tags_are_never_dropped(tmp_path) -> None:
    (tmp_path / "kept.txt").write_text("Saber (Fate)\n\nsword\n")
    for protected in (("saber (fate)", "SWORD"), tmp_path / "kept.txt"):
        config = CaptionsConfig(protected_tags=protected, tag_dropout=1.0)
        assert render("saber (fate), hat, sword", config, random.Random(0)) == "saber (fate), sword"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of ohwx person", "a photo of person"),
        ("a photo of ohwx", "a photo"),
        ("ohwx, sitting, Ohwx in the rain", "sitting, in the rain"),
        ("ohwx", ""),
        ("ohwxy, ohwx-like", "ohwxy, ohwx-like"),
        ("a drawing by the ohwx, red", "a drawing, red"),
    ],
)
def test_a_trigger_is_taken_out_with_what_it_leaves_dangling(text: str, expected: str) -> None:
    assert without_trigger(text, CaptionsConfig(trigger="ohwx")) == expected


@pytest.mark.parametrize("group", ["|||", " ||| ", ";|||"])
def test_a_group_separator_that_holds_the_other_one_is_refused(group: str) -> None:
    with pytest.raises(ValueError, match=r"group_separator: holds keep_separator '\|\|\|', so it would tie nothing"):
        CaptionsConfig(keep_separator="|||", group_separator=group)
