"""Prompts by step, joined by AND, with choices; and what is only words here: A1111's grammar and its extensions'."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sdlora.config.generate import GenerateConfig
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.generation.request.prompt_choices import choose, has_choices
from sdlora.generation.request.prompt_schedule import schedule
from sdlora.generation.request.prompt_warnings import prompt_warnings
from sdlora.generation.request.requests import resolve, single_images
from sdlora.library.prompt_tags import split_prompt
from sdlora.training.preflight.checks import _check_previews


def texts(prompt: str, steps: int = 4) -> list[str]:
    return ["|".join(part.text for part in parts) for parts in schedule(prompt, steps).prompts]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [cat:dog:0.5] here", ["a cat here"] * 2 + ["a dog here"] * 2),
        ("[cat:dog:3]", ["cat"] * 3 + ["dog"]),
        ("[dog:0.5]", ["", "", "dog", "dog"]),
        ("[cat::0.25]", ["cat", "", "", ""]),
        ("[cat|dog]", ["cat", "dog", "cat", "dog"]),
        ("[cat|dog|]", ["cat", "dog", "", "cat"]),
        ("a [b|[c:d:0.5]:e:3]", ["a [b|c:e:3]", "a [b|c:e:3]", "a [b|d:e:3]", "a [b|d:e:3]"]),
        ("[a [b|c]:d:2]", ["a b", "a c", "d", "d"]),
        ("[a:(b:1.2):0.5]", ["a", "a", "(b:1.2)", "(b:1.2)"]),
        ("[word] [a:b] [open", ["[word] [a:b] [open"] * 4),
        (r"\[cat|dog\] [a\:b:c:0.5]", [r"\[cat|dog\] a\:b"] * 2 + [r"\[cat|dog\] c"] * 2),
        ("(a | b:1.2), c:d", ["(a | b:1.2), c:d"] * 4),
    ],
)
def test_prompts_change_by_step_as_in_a1111(prompt: str, expected: list[str]) -> None:
    assert texts(prompt) == expected


def test_prompts_joined_by_and_have_weights() -> None:
    parts = schedule("a cat AND [red|blue] dog :1.2 AND sky:-.5", 2).prompts
    assert [[(part.text, part.weight) for part in step] for step in parts] == [
        [("a cat", 1.0), ("red dog", 1.2), ("sky", -0.5)],
        [("a cat", 1.0), ("blue dog", 1.2), ("sky", -0.5)],
    ]
    assert schedule("HAND and SAND", 1).num_prompts == 1
    assert texts("a AND b", 1) == ["a|b"]
    assert schedule("a AND b", 1, combine=False).prompts[0][0].text == "a AND b"


def test_another_number_of_steps_takes_the_same_shares() -> None:
    found = schedule("[cat:dog:0.5]", 10)
    assert [found.at(index, 4)[0].text for index in range(4)] == ["cat", "cat", "dog", "dog"]


def test_choices_are_settled_by_the_seed_and_by_nothing_else() -> None:
    prompt = "{red|green|blue} {2$$a|b|c} {0::never|always} {1-2$$ and $$x|y}"
    assert choose(prompt, 7) == choose(prompt, 7)
    assert len({choose(prompt, seed) for seed in range(50)}) > 10
    for seed in range(50):
        words = choose(prompt, seed)
        assert "{" not in words
        assert "never" not in words


def test_weighted_choices_follow_their_weights() -> None:
    counts = Counter(choose("{3::red|green}", seed) for seed in range(2000))
    assert counts["red"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_wildcard_files_are_read_also_nested(tmp_path: Path) -> None:
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "cats.txt").write_text("# big ones\nlion\n{black|white} panther\n")
    (tmp_path / "scene.txt").write_text("a __animals/*__ at dusk\n")
    found = {choose("__scene__", seed, [tmp_path]) for seed in range(60)}
    assert found == {"a lion at dusk", "a black panther at dusk", "a white panther at dusk"}


def test_a_wildcard_without_a_file_and_files_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"__colour__: no file colour\.txt in wildcard_folders, which is empty"):
        choose("__colour__", 0)
    (tmp_path / "a.txt").write_text("__a__")
    with pytest.raises(ConfigError, match="its wildcards never end"):
        choose("__a__", 0, [tmp_path])


def test_an_adapter_named_in_a_wildcard_file_is_refused_not_left_as_words(tmp_path: Path) -> None:
    (tmp_path / "look.txt").write_text("ink\n<lora:ink:0.8> ink\n")
    with pytest.raises(ConfigError, match=r"__look__: '<lora:ink:0.8> ink': an adapter can't be chosen by the seed"):
        choose("a fox, __look__", 0, [tmp_path])


def test_every_image_settles_its_own_choices_and_repeats_them() -> None:
    config = GenerateConfig(prompt="{red|green|blue|gold} fox, {novel}", seed=3, num_images=8)
    rows = single_images(config)
    assert len({row.prompt for row in rows}) > 1
    assert all(row.prompt.endswith("fox, {novel}") for row in rows)
    assert [single_images(row) for row in rows] == [[row] for row in rows]
    assert single_images(config.model_copy(update={"choices": False}))[0].prompt == config.prompt
    assert not has_choices("a {novel} __ b __c d")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("<LORA:ink:0.8:0.5>", ("ink", 0.8, 0.5, "ALL")),
        ("<Lora:ink:1:lbw=OUTALL>", ("ink", 1, 1, "OUTALL")),
        ("<lora:ink:0.5:lbw=1,0,0.5>", ("ink", 0.5, 0.5, (1, 0, 0.5))),
    ],
)
def test_tags_in_any_case_and_with_block_weights_are_read(prompt: str, words: tuple[object, ...]) -> None:
    _, (tag,) = split_prompt(prompt)
    assert (tag.name, tag.text_encoder, tag.unet, tag.blocks) == words


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a cat <lora:ink:0.8", r"<lora:ink:0\.8: it is never closed"),
        ("<lora:ink:0.8 a cat <lora:wash:1>", r"<lora:ink:0\.8 a cat: it is never closed"),
        ("<lora:ink:1.0@0.0>", r"weights that change with the steps \('1\.0@0\.0'\) are not read here"),
        ("<lora:ink:1:start=3>", r"'start=' is not known here"),
        ("{<lora:ink:1>|<lora:wash:1>}", "an adapter can't be chosen by the seed"),
        ("<lora:ink:1:lbw=1,x>", "'1,x' is no list of numbers"),
    ],
)
def test_tags_that_cannot_be_meant_are_refused(prompt: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        split_prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "negative", "words"),
    [
        ("a (red:1,3) fox", "", r"\(red:1,3\) has no weight that is a number, so it is words"),
        ("a (red:x) fox", "", r"\(red:x\) has no weight that is a number"),
        ("[red:blue:when]", "", "doesn't say when with a number"),
        ("a (red:1.3", "", "a '.' is not closed"),
        ("{red|blue fox", "", "a '{' is not closed"),
        ("< lora:t:1>", "", "write it without blanks"),
        ("a fox --ar 16:9", "", "'--ar': options of Midjourney are words here"),
        ("a {cat}", "", r"prompt: \{cat\}: braces without \| are words here"),
        ("a cat++ here", "", "InvokeAI's . and - are words"),
        ('("a", "b").blend(1, 1)', "", r"'blend': InvokeAI's functions"),
        ("embedding:easyneg", "", "embedding:easyneg: no embedding of that name"),
        ("<random:a,b>", "", "<random:a,b> has no meaning here"),
        ("", "<lora:ink:1>", "negative prompt: <lora:ink:1> counts in the prompt only"),
        ("", "a AND b", "negative prompt: AND joins prompts in the prompt only"),
    ],
)
def test_what_is_only_words_here_is_said(prompt: str, negative: str, words: str) -> None:
    (sentence,) = prompt_warnings(GenerateConfig(prompt=prompt, negative=negative))
    import re

    assert re.search(words, sentence)


def test_plain_prompts_are_not_warned_of() -> None:
    prompt = (
        "a (cat:1.2), [dog], smile :(, (note: it), ((x:1.2) y), [a:b:0.5], [(a:1.1)::5], fox (series), "
        "x-ray, t-shirt, :-), 1+1, c++ code?, BREAK {a|b} <lora:ink:1>"
    )
    assert prompt_warnings(GenerateConfig(prompt=prompt.replace("c++ code?", ""), negative="ugly, low-res")) == []


@pytest.mark.parametrize("text", ["[" * 5000, "[a:b:" * 1500, "[x|" * 60 + "]" * 60])
def test_brackets_nested_deeper_than_anybody_means_are_refused_before_anything_is_loaded(text: str) -> None:
    with pytest.raises(ConfigError, match=r"more than 50 brackets are open at once: \["):
        schedule(text, 4)
    for name in ("prompt", "negative"):
        with pytest.raises(ConfigError, match="more than 50 brackets"):
            resolve(GenerateConfig.model_validate({name: text}))
    nested = "[a:" * 50 + "b" + ":0.5]" * 50
    assert [each[0].text for each in schedule(nested, 2).prompts] == ["a", "b"]


def test_a_preview_prompt_that_can_not_be_read_is_refused_before_the_run() -> None:
    config = TrainConfig.model_validate({"previews": {"prompts": ["a", "[" * 60], "negative": "[" * 60}})
    with pytest.raises(ConfigError, match=r"(?s)previews\.negative: more than 50 .*previews\.prompts\.1: more than 50"):
        _check_previews(config)
