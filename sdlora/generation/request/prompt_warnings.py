"""What a prompt holds that other tools give a meaning and that is only words here, so that nobody has to find out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from sdlora.config.generate import GenerateConfig
from sdlora.models.new_tokens import word_pattern

_ADAPTER_TAG = re.compile(r"<(?:lora|lyco):[^>]*>?", re.IGNORECASE)
_OTHER_TAG = re.compile(r"<(?!(?:lora|lyco|hypernet):)[a-z_]+:[^<>]*>", re.IGNORECASE)
_EMBEDDING = re.compile(r"\bembedding:[\w./\\<>-]+", re.IGNORECASE)
_BRACES = re.compile(r"\{[^{}|$]*\}")
_WEIGHT = r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*"
_NO_WEIGHT = re.compile(rf"\((?!{_WEIGHT}\))[^()\[\]]*:(?!{_WEIGHT}\))[^()\[\]\s:]{{1,12}}\)")
_NO_STEP = re.compile(rf"\[[^\[\]:|]*:[^\[\]:|]*:(?!{_WEIGHT}\])[^\[\]:|]+\]")
_UNCLOSED = re.compile(r"(?<![\\:;=])\((?=[^()]*$)|(?<![\\:;=])\[(?=[^\[\]]*$)|\{(?=[^{}]*[|$][^{}]*$)")
_SPACED_TAG = re.compile(r"<\s+(?:lora|lyco|hypernet)\s*:[^<>]*>|<(?:lora|lyco)\s+:[^<>]*>", re.IGNORECASE)
_MIDJOURNEY = re.compile(r"(?<!\S)--[a-z]+\b")
_INVOKE_WEIGHT = re.compile(r"(?:\)|\w)(?:\+{1,4}|-{2,4})(?=[\s,)]|$)")
_INVOKE_CALL = re.compile(r"\)\.(?:and|blend|swap)\(")
_CHOICE = re.compile(r"\{[^{}]*[|$][^{}]*\}|__[\w./*-]+?__")
_AND = re.compile(r"\bAND\b")
_AND_WEIGHT = re.compile(r"(?:\s:\s*|:\s*(?=[\d.,]+\s*$))([^\s:()\[\]]+)\s*$")

Rule = tuple[re.Pattern[str], Callable[[str], str]]

_IN_BOTH: tuple[Rule, ...] = (
    (_OTHER_TAG, lambda found: f"{found} has no meaning here and is taken as words"),
    (
        _BRACES,
        lambda found: f"{found}: braces without | are words here; for NovelAI's emphasis write ({found[1:-1]}:1.05)",
    ),
    (_NO_WEIGHT, lambda found: f"{found} has no weight that is a number, so it is words: write (word:1.3)"),
    (_NO_STEP, lambda found: f"{found} doesn't say when with a number, so it is words: write [red:blue:0.5]"),
    (_UNCLOSED, lambda found: f"a '{found}' is not closed"),
    (_SPACED_TAG, lambda found: f"{found} is taken as words: write it without blanks, <lora:name:0.8>"),
    (_MIDJOURNEY, lambda found: f"'{found}': options of Midjourney are words here"),
    (_INVOKE_WEIGHT, lambda found: f"'{found}': InvokeAI's + and - are words here; write (word:1.1) or (word:0.9)"),
    (_INVOKE_CALL, lambda found: f"'{found[2:-1]}': InvokeAI's functions are words here; write a AND b, or [a:b:0.5]"),
    (
        _EMBEDDING,
        lambda found: f"{found}: no embedding of that name is in embedding_folders or an adapter: taken as words",
    ),
)
_IN_NEGATIVE: tuple[Rule, ...] = (
    (_ADAPTER_TAG, lambda found: f"{found} counts in the prompt only; in the negative prompt it is taken as words"),
    (_AND, lambda _: "AND joins prompts in the prompt only; in the negative prompt it is a word"),
)
_IN_PREVIEWS: tuple[Rule, ...] = (
    (_ADAPTER_TAG, lambda found: f"{found} is taken as words: a preview has the trained adapter alone"),
    (_CHOICE, lambda found: f"{found} is taken as words: choices are settled in generating, not in previews"),
)


def preview_warnings(prompt: str) -> list[str]:
    """The same of a prompt that is generated while training, or of its negative."""
    return _sentences(prompt, (*_IN_BOTH, *_IN_PREVIEWS)) + _joined_warnings(prompt)


def prompt_warnings(config: GenerateConfig, embeddings: Collection[str] = ()) -> list[str]:
    """A sentence for each such thing in the prompt and the negative prompt. embeddings: names that are loaded."""
    prompt, negative = (_without(text, embeddings) for text in (config.prompt, config.negative))
    found = [f"prompt: {sentence}" for sentence in _sentences(prompt, _IN_BOTH)]
    found += [f"prompt: {sentence}" for sentence in _joined_warnings(prompt)]
    return found + [f"negative prompt: {text}" for text in _sentences(negative, (*_IN_BOTH, *_IN_NEGATIVE))]


def _joined_warnings(prompt: str) -> list[str]:
    """What is said of prompts joined by AND: those without a word, and weights that are none."""
    pieces = _AND.split(prompt)
    if len(pieces) == 1:
        return []
    found = ["AND has nothing on one side: an empty prompt is joined"] if not all(map(str.strip, pieces)) else []
    ends = [match for piece in pieces if (match := _AND_WEIGHT.search(piece))]
    found += [
        f"'{match[0].strip()}' is no weight of a prompt joined by AND, so it is words: write a cat AND a dog :1.2"
        for match in ends
        if not re.fullmatch(_WEIGHT, match[1])
    ]
    return list(dict.fromkeys(found))


def _without(text: str, embeddings: Collection[str]) -> str:
    """The text without the embeddings that have a meaning."""
    pattern = word_pattern(embeddings) if embeddings else None
    return text if pattern is None else pattern.sub(lambda match: "" if match["called"] else match[0], text)


def _sentences(text: str, rules: tuple[Rule, ...]) -> list[str]:
    return list(dict.fromkeys(say(match[0]) for pattern, say in rules for match in pattern.finditer(text)))
