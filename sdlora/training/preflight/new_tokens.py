"""New tokens before a model is loaded: how long they are, and whether any caption has them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from sdlora.config.train import TrainConfig
from sdlora.data.images import ImageRecord
from sdlora.errors import ConfigError
from sdlora.models.new_tokens import NewTokens, Tokenize
from sdlora.models.prompts import CHUNK_TOKENS, token_numbers
from sdlora.models.tokenizer import light_tokenizer
from sdlora.training.inputs.images import RunImages


def init_lengths(config: TrainConfig) -> dict[str, int]:
    """How many tokens of the vocabulary each new token's init words are."""
    tokenizer = light_tokenizer(config.base_model)
    return {token: len(token_numbers(tokenizer, own.init)) for token, own in config.adapter.new_tokens.items()}


def vector_counts(config: TrainConfig) -> dict[str, int]:
    """How many vectors each new token is made of, and so how many places it takes in a caption."""
    tokens = config.adapter.new_tokens
    lengths = init_lengths(config) if any(own.vectors is None for own in tokens.values()) else {}
    return {token: own.vectors or lengths[token] for token, own in tokens.items()}


def caption_numbers(config: TrainConfig) -> Tokenize:
    """From a caption to its token numbers, those of new tokens among them, to count them."""
    words = {token: [torch.zeros(count, 1)] for token, count in vector_counts(config).items()}
    return partial(NewTokens(words).numbers, partial(token_numbers, light_tokenizer(config.base_model)))


def check_tokens(config: TrainConfig, images: RunImages) -> None:
    """Raise ConfigError for tokens that no caption calls up, and for init words that are too many or none."""
    tokens = config.adapter.new_tokens
    problems: list[str] = []
    for token, length in init_lengths(config).items() if tokens else ():
        own = tokens[token]
        if length == 0:
            problems.append(f"the init '{own.init}' of {token} holds no word of the vocabulary")
        elif own.vectors is None and length > CHUNK_TOKENS:
            problems.append(
                f"the init of {token} is {length} tokens long, more than the {CHUNK_TOKENS} of a caption; "
                "shorten it, or set vectors"
            )
    words = NewTokens({token: [torch.zeros(1, 1)] for token in tokens})
    found = {
        word
        for record in images.trained
        if record.captions.dropout < 1
        for text in record.trained_captions() or _forms(record)
        for word in words.words_in(text)
    }
    problems += [
        f"{token} stands in no trained caption, so nothing would train it; set captions.trigger to "
        f"{token}, or write it into the captions"
        for token in tokens
        if token.casefold() not in found
    ]
    if problems:
        raise ConfigError("adapter.new_tokens", problems)


def _forms(record: ImageRecord) -> list[str]:
    """What an image is trained with where tags are shuffled or dropped: the caption whole, and all as they are read."""
    return [record.plain_caption(), record.caption or "", *(text for text, _ in record.alternatives)]


def token_notes(config: TrainConfig) -> Iterator[str]:
    """Init words that have no vector to go to, and tokens that are words already."""
    tokenizer = light_tokenizer(config.base_model) if config.adapter.new_tokens else None
    for token in config.adapter.new_tokens if tokenizer is not None else ():
        if token.isalpha() and len(token_numbers(tokenizer, token)) == 1:
            yield (
                f"adapter.new_tokens: {token} is a word of the vocabulary already: in captions and prompts it means "
                f"the new token, and no longer that word; write <{token}> to keep both"
            )
    for token, length in init_lengths(config).items() if config.adapter.new_tokens else ():
        own = config.adapter.new_tokens[token]
        if own.vectors is not None and own.vectors < length:
            yield (
                f"adapter.new_tokens: the init '{own.init}' of {token} is {length} tokens long, of which vectors="
                f"{own.vectors} takes the first"
            )
