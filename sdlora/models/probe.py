"""What a UNet predicts, found out by asking it: for files that lost the mark that would tell.

Two calls on a blank image. Deep in the noise the input is nearly all noise, which an epsilon model gives back, while a
v model answers with the image, of which there is none: no correlation. At little noise both give back the noise; a UNet
that doesn't do even that (an untrained one) says nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdlora.config.base_model import Prediction
from sdlora.models.schedule import NoiseSchedule

_EDGE = 32
"""Of the latents: 256 pixels."""
_LITTLE_NOISE = 0.3
"""Place in the schedule of the second call."""
_ALIKE, _UNLIKE = 0.6, 0.35
"""Correlations that count as giving the noise back, and as not."""
_TOKENS = 77


@torch.no_grad()
def probed_prediction(unet: nn.Module, schedule: NoiseSchedule, dtype: torch.dtype) -> Prediction | None:
    """epsilon or v_prediction, None when the answers tell neither. Two calls of the UNet."""
    config: Any = unet.config
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(0)
    noise_BCHW = torch.randn(1, config.in_channels, _EDGE, _EDGE, generator=generator)
    # No words at all: what it predicts shows without them, and no text encoder has to be there.
    text_BTD = torch.zeros(1, _TOKENS, config.cross_attention_dim, device=device, dtype=dtype)
    extra: dict[str, Any] = {}
    if getattr(config, "addition_embed_type", None) == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]], device=device)
        pooled_BD = torch.zeros(1, width, device=device, dtype=dtype)
        extra["added_cond_kwargs"] = {"text_embeds": pooled_BD, "time_ids": sizes}
    last = len(schedule.alphas_cumprod_T) - 1
    found = []
    for timestep in (last, int(last * _LITTLE_NOISE)):
        share = float((1 - schedule.alphas_cumprod_T[timestep]).sqrt())
        given = (noise_BCHW * share).to(device, dtype)
        found.append(_correlation(unet(given, timestep, text_BTD, **extra).sample.float().cpu(), noise_BCHW))
    deep, shallow = found
    if shallow < _ALIKE:
        return None
    return "epsilon" if deep > _ALIKE else "v_prediction" if deep < _UNLIKE else None


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
