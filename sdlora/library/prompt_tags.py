"""Adapters named in a prompt, `<lora:name:te:unet>`, in AUTOMATIC1111's grammar: to settings and back. Needs no torch.

    <lora:ink>                weight 1               <lora:ink:0.8:0.5>           text encoder 0.8, UNet 0.5
    <lora:ink:0.8>            weight 0.8             <lora:ink:te=0.8:unet=0.5>   the same
    <lora:ink:1:lbw=OUTALL>   weights by block: a preset or numbers, as the LoRA Block Weight extension takes them

A number alone sets both; case doesn't matter. The name is the file's, without its suffix, or another that
`names.resolve` takes for it. `<lyco:...>` means the same. Every tag counts, also one that names an adapter a second
time. Only the prompt has tags; in the negative prompt they are plain text, as in AUTOMATIC1111's web UI.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError, SdloraError
from sdlora.library.names import find_adapter
from sdlora.models.prompts import CHUNK_TOKENS, count_tokens
from sdlora.models.tokenizer import light_tokenizer

_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]+)>", re.IGNORECASE)
_OPEN_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*(?=<|$)", re.IGNORECASE)
_IN_CHOICE = re.compile(
    r"\{[^{}]*<(?:lora|lyco):[^{}]*\|[^{}]*\}|\{[^{}]*\|[^{}]*<(?:lora|lyco):[^{}]*\}", re.IGNORECASE
)
_NAMED = {"te": "text_encoder", "unet": "unet"}
_FORBIDDEN_IN_NAMES = ":<>=\n"


@dataclass(frozen=True)
class AdapterTag:
    """One tag: the adapter's name and its weights; `text` is the tag as it stands in the prompt."""

    name: str
    text_encoder: float = 1.0
    unet: float = 1.0
    text: str = ""
    blocks: str | tuple[float, ...] = "ALL"

    def as_adapter(self, file: Path | str) -> UsedAdapter:
        """The same as a setting, once its file is found."""
        text_encoder = None if self.text_encoder == self.unet else self.text_encoder
        blocks = self.blocks if isinstance(self.blocks, str) else list(self.blocks)
        return UsedAdapter(file=str(file), weight=self.unet, text_encoder=text_encoder, blocks=blocks)


def holds_tag(text: str) -> bool:
    """Whether a text names an adapter as a prompt would, be it rightly or not."""
    return _TAG.search(text) is not None


def split_prompt(prompt: str) -> tuple[str, tuple[AdapterTag, ...]]:
    """The prompt without its tags, and the tags in their order.

    Raises ConfigError that lists every tag that can't be read.
    """
    rest, tags, problems = _tags_of(prompt)
    if problems:
        raise ConfigError("the prompt", problems)
    return rest, tags


def _tags_of(prompt: str) -> tuple[str, tuple[AdapterTag, ...], list[str]]:
    """The prompt without its tags, those that can be read, and what is wrong with the others."""
    tags: list[AdapterTag] = []
    problems: list[str] = []
    for match in _TAG.finditer(prompt):
        read = _read_tag(match)
        if isinstance(read, AdapterTag):
            tags.append(read)
        else:
            problems.append(f"{match[0]}: {read}")
    problems += [
        f"{match[0].strip()}: it is never closed; write <lora:name:0.8>"
        for match in _OPEN_TAG.finditer(_TAG.sub("", prompt))
    ]
    problems += [
        f"{match[0]}: an adapter can't be chosen by the seed; write it outside the braces"
        for match in _IN_CHOICE.finditer(prompt)
    ]
    return (_TAG.sub("", prompt).strip() if tags else prompt), tuple(tags), problems


def _read_tag(match: re.Match[str]) -> AdapterTag | str:
    """The tag, or what is wrong with it."""
    if match[1].lower() == "hypernet":
        return "hypernetworks can't be used; take it out of the prompt"
    positional: list[str] = []
    weights: dict[str, float] = {}
    blocks: str | tuple[float, ...] = "ALL"
    for part in match[2].split(":"):
        key, equals, value = part.partition("=")
        if not equals:
            positional.append(part.strip())
        elif key.strip().lower() == "lbw":
            listed = [_number(text) for text in value.split(",")]
            if any(number is None for number in listed):
                if len(listed) > 1:
                    return f"'{value.strip()}' is no list of numbers"
                blocks = value.strip()
            else:
                blocks = tuple(number for number in listed if number is not None)
        elif key.strip() not in _NAMED:
            return (
                f"'{key.strip()}=' is not known here; write te=, unet= and lbw= (for a part of the steps give the "
                "adapter's start and end as settings)"
            )
        elif (number := _number(value)) is None:
            return f"'{value.strip()}' is not a number"
        else:
            weights[_NAMED[key.strip()]] = number
    if not positional or not positional[0]:
        return "it has no name; write <lora:name:0.8>"
    if len(positional) > 3:
        return "it has too many parts; write <lora:name:te:unet>"
    numbers = [_number(text) for text in positional[1:]]
    for text, parsed in zip(positional[1:], numbers, strict=True):
        if parsed is None and "@" in text:
            return (
                f"weights that change with the steps ('{text}') are not read here; give the adapter's start and end as "
                "settings, as in --adapter ink.safetensors:1:start=0.2,end=0.8"
            )
        if parsed is None:
            return f"'{text}' is not a number"
    text_encoder, unet = weights.get("text_encoder"), weights.get("unet")
    if text_encoder is None:
        text_encoder = numbers[0] if numbers else None
    if text_encoder is None:
        text_encoder = 1.0
    if unet is None:
        unet = numbers[1] if len(numbers) > 1 else text_encoder
    assert unet is not None
    return AdapterTag(positional[0], text_encoder, unet, match[0], blocks)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def take_tags(config: GenerateConfig, find: Callable[[str], Path] | None = None) -> GenerateConfig:
    """The same request with the prompt's tags among its adapters, and a prompt without them.

    find: gives a name's file; by default it is searched in the request's adapter folders.
    Raises ConfigError for tags that can't be read and for names that aren't found, all at once.
    """
    config, problems = take_readable_tags(config, find)
    if problems:
        raise ConfigError("the prompt", problems)
    return config


def take_readable_tags(
    config: GenerateConfig, find: Callable[[str], Path] | None = None
) -> tuple[GenerateConfig, list[str]]:
    """As `take_tags`, of the tags that can be read and are found; and what is wrong with the others."""
    prompt, tags, problems = _tags_of(config.prompt)
    if not tags:
        return config, problems
    adapters: list[UsedAdapter] = []
    for tag in tags:
        try:
            file = find(tag.name) if find else find_adapter(tag.name, config.adapter_folders)
            adapters.append(tag.as_adapter(file))
        except ConfigError as error:
            problems += [f"{tag.text}: {problem}" for problem in error.problems]
    return config.model_copy(update={"prompt": prompt, "adapters": (*config.adapters, *adapters)}), problems


UNTAGGABLE = "a name in a prompt can't be empty or hold any of : < > =; rename the file"
"""What is said of an adapter's name that no tag can hold."""


def can_be_tagged(name: str) -> bool:
    """Whether the grammar has a place for an adapter's name."""
    return bool(name.strip()) and not any(letter in name for letter in _FORBIDDEN_IN_NAMES)


def write_tag(name: str, text_encoder: float = 1.0, unet: float | None = None) -> str:
    """The tag as it stands in a prompt; unet is as strong as the text encoder unless given.

    Raises ConfigError for a name that the grammar has no place for.
    """
    if not can_be_tagged(name):
        raise ConfigError(f"adapter '{name}'", [UNTAGGABLE])
    weights = [text_encoder] if unet is None or unet == text_encoder else [text_encoder, unet]
    return f"<lora:{name}:{':'.join(plain_number(weight) for weight in weights)}>"


def write_tags(prompt: str, adapters: Sequence[UsedAdapter]) -> str:
    """The prompt with a tag behind it for every adapter: what `take_tags` reads back.

    Tags have no place for a second text encoder's own weight, blocks, start and end; those get lost.
    """
    tags = [
        write_tag(
            Path(adapter.file).stem,
            adapter.weight if adapter.text_encoder is None else adapter.text_encoder,
            adapter.weight if adapter.unet is None else adapter.unet,
        )
        for adapter in adapters
    ]
    return " ".join([prompt, *tags]) if prompt.strip() else "".join(tags)


def plain_number(value: float) -> str:
    """A number as people write it, exactly: 7, 0.8, -1.25."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e16 else repr(float(value))


def count_prompt_tokens(prompt: str, model: str) -> tuple[int, int]:
    """Tokens of a prompt without its tags, as a base model counts them, and the room in the chunks that they take."""
    try:
        text = split_prompt(prompt)[0]
    except ConfigError:
        text = prompt
    tokens = count_tokens(_tokenizer(model), text)
    return tokens, CHUNK_TOKENS * max(1, -(-tokens // CHUNK_TOKENS))


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> object:
    try:
        return light_tokenizer(BaseModelConfig(model=model))
    except (SdloraError, OSError, ValueError):  # nothing there yet: all families share CLIP's vocabulary
        return light_tokenizer(BaseModelConfig())
