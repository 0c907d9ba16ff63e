"""What a UNet predicts, found out by asking it: for files that lost the mark that would tell.

Two calls. The first is given nothing but noise, as at the end of the schedule: an epsilon model and a flow give the
noise back, a v model answers with the image, of which there is none. The second is given a smooth image under as much
noise: an epsilon model gives the noise back, the other two take the image off it, a v model the whole of it and a flow,
which reckons with other shares, most of it. A UNet that doesn't even find the noise then (an untrained one) says
nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdlora.config.base_model import Prediction
from sdlora.models.schedule import build_schedule

_EDGE = 32
"""Of the latents: 256 pixels."""
_MIDDLE = 0.4
"""Place in the schedule of the second call, where image and noise weigh about the same."""
_ALIKE, _UNLIKE = 0.6, 0.35
"""Correlations that count as giving the noise back, and as not."""
_TAKEN_OFF, _LEFT = -0.2, -0.1
"""Correlations with the image that count as taking it off, and as leaving it."""
_FOUND = 0.25
"""Correlation with the noise, in the middle of the schedule, of a UNet that has learned anything."""
_TOKENS = 77


@torch.no_grad()
def probed_prediction(unet: nn.Module, dtype: torch.dtype) -> Prediction | None:
    """epsilon, v_prediction or flow; None when the answers tell none of them. Two calls of the UNet."""
    config: Any = unet.config
    schedule = build_schedule({}, "epsilon", zero_terminal_snr=False)
    generator = torch.Generator().manual_seed(0)
    noise_BCHW = torch.randn(1, 4, _EDGE, _EDGE, generator=generator)
    image_BCHW = _smooth(noise_BCHW)
    last, middle = len(schedule) - 1, int(_MIDDLE * len(schedule))
    signal, spread = schedule.rates_at(middle)
    deep_BCHW = _answer(unet, config, noise_BCHW, last, dtype)
    mixed_BCHW = _answer(unet, config, signal * image_BCHW + spread * noise_BCHW, middle, dtype)
    deep = _correlation(deep_BCHW, noise_BCHW)
    noise, image = _correlation(mixed_BCHW, noise_BCHW), _correlation(mixed_BCHW, image_BCHW)
    if noise < _FOUND or not all(map(torch.isfinite, (deep, noise, image))):
        return None
    if deep > _ALIKE:
        return "flow" if image < _TAKEN_OFF else "epsilon" if image > _LEFT else None
    return "v_prediction" if deep < _UNLIKE and image < _TAKEN_OFF else None


def _answer(unet: nn.Module, config: Any, latents_BCHW: Tensor, timestep: int, dtype: torch.dtype) -> Tensor:
    device = next(unet.parameters()).device
    # No words at all: what it predicts shows without them, and no text encoder has to be there.
    text_BTD = torch.zeros(1, _TOKENS, config.cross_attention_dim, device=device, dtype=dtype)
    extra: dict[str, Any] = {}
    if getattr(config, "addition_embed_type", None) == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]], device=device)
        pooled_BD = torch.zeros(1, width, device=device, dtype=dtype)
        extra["added_cond_kwargs"] = {"text_embeds": pooled_BD, "time_ids": sizes}
    # An inpainting UNet is given no picture, and all of the canvas to paint.
    latents_BCHW = torch.cat([latents_BCHW, torch.zeros(1, config.in_channels - 4, _EDGE, _EDGE)], dim=1)
    latents_BCHW[:, 4:5] = 1.0
    predicted_BCHW: Tensor = unet(latents_BCHW.to(device, dtype), timestep, text_BTD, **extra).sample
    return predicted_BCHW.float().cpu()


def _smooth(noise_BCHW: Tensor) -> Tensor:
    """An image without detail, of unit variance: waves that cross the canvas once, in another phase each channel."""
    _, channels, height, width = noise_BCHW.shape
    y_H, x_W = torch.linspace(0, 2 * torch.pi, height), torch.linspace(0, 2 * torch.pi, width)
    waves = [torch.sin(x_W + index)[None] + torch.cos(y_H + 2 * index)[:, None] for index in range(channels)]
    return torch.stack(waves)[None]


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
