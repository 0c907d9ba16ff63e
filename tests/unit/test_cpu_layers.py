"""The UNet's attention and small convolutions for processors with bf16 against torch's own."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from sdlora.models.frozen import attention, windows
from sdlora.models.frozen.attention import PlainAttention
from sdlora.models.frozen.windows import PlainConvolution, use_plain_convolutions


@pytest.mark.parametrize("is_cross", [False, True])
@torch.no_grad()
def test_plain_attention_equals_torchs(is_cross: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(query_dim=48, cross_attention_dim=32 if is_cross else None, heads=3, dim_head=16)
    inputs, texts = torch.randn(2, 20, 48), torch.randn(2, 7, 32) if is_cross else None
    layer.set_processor(AttnProcessor2_0())
    expected = layer(inputs, encoder_hidden_states=texts)
    layer.set_processor(PlainAttention())
    torch.testing.assert_close(layer(inputs, encoder_hidden_states=texts), expected)


@pytest.mark.parametrize("most_kept", [2**18, 0])
def test_gradients_of_plain_attention_are_torchs_whether_scores_are_kept_or_made_again(
    most_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_MOST_KEPT", most_kept)
    if not most_kept:
        monkeypatch.setattr(attention, "_AT_ONCE", 300)
    torch.manual_seed(0)
    layer = Attention(query_dim=48, cross_attention_dim=32, heads=3, dim_head=16)
    found = []
    for processor in (AttnProcessor2_0(), PlainAttention()):
        layer.set_processor(processor)
        layer.zero_grad()
        generator = torch.Generator().manual_seed(1)
        inputs, texts, weights = (
            torch.randn(2, *shape, generator=generator, requires_grad=True) for shape in ((20, 48), (7, 32), (20, 48))
        )
        (layer(inputs, encoder_hidden_states=texts) * weights.detach()).sum().backward()
        found.append([inputs.grad, texts.grad, *(parameter.grad for parameter in layer.parameters())])
    for own, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize(
    ("stride", "padding", "size"), [(1, 1, (8, 8)), (2, 1, (9, 14)), (1, 0, (5, 6)), (1, 1, (9, 8))]
)
@pytest.mark.parametrize("is_channels_last", [True, False])
@torch.no_grad()
def test_small_convolutions_equal_torchs(
    stride: int, padding: int, size: tuple[int, int], is_channels_last: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3, stride, padding)
    inputs = torch.randn(2, 16, *size)
    expected = layer(inputs)
    model = nn.Sequential(layer, nn.Conv2d(24, 8, 1)).to(memory_format=torch.channels_last)
    weight = layer.weight
    use_plain_convolutions(model)
    assert [type(module) for module in model] == [PlainConvolution] * 2
    assert layer.weight is weight
    if is_channels_last:
        inputs = inputs.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(inputs), expected)


@pytest.mark.parametrize("most", [10**6, 0])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, (8, 8)), (3, 2, 1, (9, 14)), (3, 1, 0, (5, 6)), (1, 1, 0, (4, 5)), (1, 2, 0, (6, 7))],
)
def test_input_gradients_of_small_convolutions_are_torchs(
    kernel: int, stride: int, padding: int, size: tuple[int, int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_MOST_POSITIONS_BACKWARD", most)
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, kernel, stride, padding).requires_grad_(False).to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 16, *size, requires_grad=True)
    weights = torch.randn_like(layer(inputs))
    (expected,) = torch.autograd.grad((layer(inputs) * weights).sum(), inputs)
    use_plain_convolutions(layer)
    assert isinstance(layer, PlainConvolution)
    outputs = layer(inputs)
    torch.testing.assert_close(torch.autograd.grad((outputs * weights).sum(), inputs)[0], expected)
