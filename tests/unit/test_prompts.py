"""Weight grammar, chunks and token counts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from sdlora.config.base_model import BaseModelConfig
from sdlora.models.prompts import Span, count_tokens, parse_weights, split_into_chunks, token_numbers
from sdlora.models.tokenizer import clip_merges, clip_vocabulary, light_tokenizer


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    """CLIP's tokenizer as the shipped vocabulary makes it."""
    return light_tokenizer(BaseModelConfig(model="owner/name"))


def weighted(caption: str) -> list[tuple[str | None, float]]:
    return [(span.text, pytest.approx(span.weight)) for span in parse_weights(caption)]


@pytest.mark.parametrize(
    ("caption", "spans"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(word:1.25)", [("word", 1.25)]),
        ("(word: .5 )", [("word", 0.5)]),
        ("[less]", [("less", 1 / 1.1)]),
        ("((twice))", [("twice", 1.21)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("unopened) here]", [("unopened) here]", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        (r"back\\slash, al\one", [(r"back\slash, alone", 1.0)]),
        ("time 12:30, x:1.2)", [("time 12:30, x:1.2)", 1.0)]),
        ("([crossed)over]", [("crossed", 1.0), ("over", 1 / 1.1)]),
        ("one BREAK two", [("one ", 1.0), (None, 1.0), ("two", 1.0)]),
        ("BREAKFAST Bob", [("BREAKFAST Bob", 1.0)]),
        ("", []),
        (
            # the example of the web UI's own documentation
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
    ],
)
def test_weights_follow_the_web_ui(caption: str, spans: list[tuple[str | None, float]]) -> None:
    assert weighted(caption) == spans


def test_the_shipped_vocabulary_is_clips() -> None:
    assert len(clip_merges()) == 48_894
    assert len(clip_vocabulary()) == 49_408
    assert clip_vocabulary()["!"] == 0
    assert clip_vocabulary()["<|endoftext|>"] == 49_407


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  PHOTO of\na cat", [320, 1125, 539, 320, 2368]),
        ("1girl, café", [272, 1611, 267, 15304]),
        ("", []),
    ],
)
def test_token_numbers_are_clips(clip: Tokenizer, text: str, numbers: list[int]) -> None:
    assert token_numbers(clip, text) == numbers


def test_long_captions_take_several_chunks() -> None:
    chunks = split_into_chunks(lambda text: [7] * 80 if text else [], "x")
    assert [len(chunk.tokens) for chunk in chunks] == [75, 5]


def test_an_empty_caption_is_one_empty_chunk(clip: Tokenizer) -> None:
    assert [chunk.tokens for chunk in split_into_chunks(lambda text: token_numbers(clip, text), "")] == [()]


def test_weights_reach_each_token(clip: Tokenizer) -> None:
    (chunk,) = split_into_chunks(lambda text: token_numbers(clip, text), "a (red cat:1.5)")
    assert chunk.weights == (1.0, 1.5, 1.5)


def test_break_begins_a_new_chunk_and_its_gap_counts(clip: Tokenizer) -> None:
    chunks = split_into_chunks(lambda text: token_numbers(clip, text), "a BREAK b c")
    assert [len(chunk.tokens) for chunk in chunks] == [1, 2]
    assert count_tokens(clip, "a BREAK b c") == 77


def test_without_weights_brackets_are_text(clip: Tokenizer) -> None:
    assert count_tokens(clip, "a (cat:1.2)", weights=True) == 2
    assert count_tokens(clip, "a (cat:1.2)", weights=False) > 2
    assert parse_weights("plain") == [Span("plain")]


@pytest.mark.slow
def test_counting_tokens_and_detecting_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from sdlora.config.base_model import BaseModelConfig\n"
        "from sdlora.models.detection import detect\n"
        "from sdlora.models.prompts import count_tokens\n"
        "from sdlora.models.tokenizer import light_tokenizer\n"
        "config = BaseModelConfig()\n"
        "assert count_tokens(light_tokenizer(config), 'a cat') == 2\n"
        "assert detect(config).family == 'sd1'\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
