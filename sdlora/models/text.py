"""Captions to text states: chunks of 75 tokens through a CLIP text encoder, weighted as in the web UI.

Shapes: B captions, K chunks a caption, N = B x K, T = 77 positions a chunk, D width of the encoder.

Weights multiply the hidden states of their tokens; then the whole chunk is scaled so that its mean is what it was:

    z' = z * w        z'' = z' * mean(z) / mean(z')          (mean over all positions and channels of a chunk)

which is AUTOMATIC1111's rule. Where that ratio makes no sense (negative, or above 10, when a mean is close to 0) it is
left out. Nothing here switches gradients off, so that text encoders can be trained through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import ModelError
from sdlora.models.bundle import Bundle, TextStates
from sdlora.models.new_tokens import NewTokens
from sdlora.models.prompts import CHUNK_TOKENS, Chunk, split_into_chunks, token_numbers

_LARGEST_RATIO = 10.0


def encode_with(
    encoder: Any,
    tokenizer: Any,
    captions: Sequence[str],
    choose: Callable[[Any, Any], Tensor],
    *,
    max_tokens: int,
    weights: bool,
    new_tokens: NewTokens,
    index: int = 0,
) -> TextStates:
    """Text states of one encoder. choose: from the encoder's output (and the encoder) to its states_NTD.

    new_tokens: words beside the vocabulary's; index: the encoder's place in the model.

    pooled_BD is the projected state of each caption's first chunk, None for an encoder without projection.
    """
    most = max_tokens // CHUNK_TOKENS
    # Each caption is cut by itself, so that a long one changes nothing in the others.
    chunks = [_chunks(tokenizer, caption, new_tokens, weights=weights)[:most] for caption in captions]
    longest = max(len(caption_chunks) for caption_chunks in chunks)
    padded = [chunk for own in chunks for chunk in [*own, *[Chunk((), ())] * (longest - len(own))]]
    device = next(encoder.parameters()).device
    tokens_NT = torch.tensor([_with_marks(chunk, tokenizer) for chunk in padded], device=device)
    with new_tokens.in_place(encoder, index, tokens_NT) as given_NT:
        output = encoder(given_NT, output_hidden_states=True)
    states_NTD = choose(output, encoder)
    if any(weight != 1 for chunk in padded for weight in chunk.weights):
        # One more before the tokens and one behind, for the marks, which have no weight.
        weights_NT = [[1.0, *chunk.weights, *[1.0] * (CHUNK_TOKENS + 1 - len(chunk.weights))] for chunk in padded]
        states_NTD = emphasise(states_NTD, torch.tensor(weights_NT))
    width = states_NTD.shape[-1]
    pooled_ND = getattr(output, "text_embeds", None)
    # Every longest-th row is the first chunk of a caption, whose pooled state SDXL was trained with.
    return TextStates(states_NTD.reshape(len(captions), -1, width), None if pooled_ND is None else pooled_ND[::longest])


def count_chunks(bundle: Bundle, caption: str, *, weights: bool) -> int:
    """Into how many chunks a caption is cut, however many are allowed. All encoders of a model cut alike."""
    return len(_chunks(bundle.tokenizers[0], caption, bundle.new_tokens, weights=weights))


def _chunks(tokenizer: Any, caption: str, new_tokens: NewTokens, *, weights: bool) -> list[Chunk]:
    return split_into_chunks(partial(new_tokens.numbers, partial(token_numbers, tokenizer)), caption, weights=weights)


def _with_marks(chunk: Chunk, tokenizer: Any) -> list[int]:
    padding = [tokenizer.pad_token_id] * (CHUNK_TOKENS - len(chunk.tokens))
    return [tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id, *padding]


def emphasise(states_NTD: Tensor, weights_NT: Tensor) -> Tensor:
    """States times weights with each chunk's mean restored (formula above), in the states' number type."""
    plain_NTD = states_NTD.float()
    weighted_NTD = plain_NTD * weights_NT.to(plain_NTD)[:, :, None]
    ratio_N = plain_NTD.mean(dim=(1, 2)) / weighted_NTD.mean(dim=(1, 2))
    sensible_N = (ratio_N > 0) & (ratio_N <= _LARGEST_RATIO)
    # A mean near 0 would blow the chunk up; where that happens the weights alone must do.
    ratio_N = torch.where(sensible_N, ratio_N, torch.ones_like(ratio_N))
    return (weighted_NTD * ratio_N[:, None, None]).to(states_NTD.dtype)


def layer_states(output: Any, encoder: Any, clip_skip: int) -> Tensor:
    """The layer `clip_skip` from the end (1 is the last), through the final layer norm."""
    if clip_skip == 1:
        last_NTD: Tensor = output.last_hidden_state
        return last_NTD
    normed_NTD: Tensor = getattr(encoder, "text_model", encoder).final_layer_norm(output.hidden_states[-clip_skip])
    return normed_NTD


def penultimate_states(output: Any, encoder: Any) -> Tensor:
    """The last layer but one, without layer norm."""
    states_NTD: Tensor = output.hidden_states[-2]
    return states_NTD


def check_clip_skip(clip_skip: int, layers: int) -> None:
    """Raise ModelError when the text encoder has no such layer."""
    if clip_skip > layers:
        raise ModelError(f"base_model.clip_skip is {clip_skip}, but the text encoder has {layers} layers")
