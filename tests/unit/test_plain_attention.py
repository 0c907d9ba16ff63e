"""The UNet's attention for processors with bf16 against torch's own."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from sdlora.generation import attention
from sdlora.generation.attention import PlainAttention


@pytest.mark.parametrize("most_scores", [2**25, 300])
@pytest.mark.parametrize("is_cross", [False, True])
@torch.no_grad()
def test_plain_attention_equals_torchs_whether_in_parts_or_whole(
    is_cross: bool, most_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_MOST_SCORES", most_scores)
    torch.manual_seed(0)
    layer = Attention(query_dim=48, cross_attention_dim=32 if is_cross else None, heads=3, dim_head=16)
    inputs, texts = torch.randn(2, 20, 48), torch.randn(2, 7, 32) if is_cross else None
    layer.set_processor(AttnProcessor2_0())
    expected = layer(inputs, encoder_hidden_states=texts)
    layer.set_processor(PlainAttention())
    torch.testing.assert_close(layer(inputs, encoder_hidden_states=texts), expected)
