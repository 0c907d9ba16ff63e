"""What a UNet predicts, found out by asking it: for files that lost the mark that would tell.

Two calls. The first is given nothing but noise, as at the end of the schedule: an epsilon model and a flow give the
noise back, a v model answers with an image. What any of them adds to the noise is the image that it sees there, however
faintly, and the second call is given that one under as much noise: an epsilon model gives the noise back, the other two
take the image off it. Another image would not do, as a model that doesn't know its like takes it for noise. A UNet
whose answer is neither (an untrained one) says nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from sdlora.config.base_model import Prediction
from sdlora.models.schedule import build_schedule

_EDGE = 32
"""Of the latents: 256 pixels."""
_MIDDLE = 0.4
"""Place in the schedule of the second call, where image and noise weigh about the same."""
_GIVEN_BACK, _NOT_GIVEN_BACK = 0.6, 0.35
"""Multiples of the noise that count as giving it back, and as not."""
_TAKEN_OFF, _LEFT = -0.3, -0.15
"""Multiples of the image that count as taking it off, and as leaving it."""
_EXPLAINED = 0.3
"""Share of the second answer that noise and image must explain. Trained: 0.55 to 0.95; at random: 0.05."""
_BLUR = 4
_TOKENS = 77


@torch.no_grad()
def probed_prediction(unet: nn.Module, dtype: torch.dtype) -> Prediction | None:
    """epsilon, v_prediction or flow; None when the answers tell none of them. Two calls of the UNet."""
    config: Any = unet.config
    schedule = build_schedule({}, "epsilon", zero_terminal_snr=False)
    noise_BCHW = torch.randn(1, 4, _EDGE, _EDGE, generator=torch.Generator().manual_seed(0))
    last, middle = len(schedule) - 1, int(_MIDDLE * len(schedule))
    deep_BCHW = _answer(unet, config, noise_BCHW, last, dtype)
    (deep,), _ = _shares(deep_BCHW, noise_BCHW)
    image_BCHW = _image(deep * noise_BCHW - deep_BCHW)
    signal, spread = schedule.rates_at(middle)
    mixed_BCHW = _answer(unet, config, signal * image_BCHW + spread * noise_BCHW, middle, dtype)
    (_, image), explained = _shares(mixed_BCHW, noise_BCHW, image_BCHW)
    if not explained > _EXPLAINED:  # in this form for answers that are not finite
        return None
    if deep > _GIVEN_BACK:
        return "flow" if image < _TAKEN_OFF else "epsilon" if image > _LEFT else None
    return "v_prediction" if deep < _NOT_GIVEN_BACK and image < _TAKEN_OFF else None


def _image(seen_BCHW: Tensor) -> Tensor:
    """What a model sees in pure noise, without detail (and the rounding of half precision), of unit power."""
    blurred_BCHW = interpolate(avg_pool2d(seen_BCHW, _BLUR), scale_factor=float(_BLUR), mode="bilinear")
    return blurred_BCHW / blurred_BCHW.square().mean().sqrt().clamp(min=1e-12)


def _shares(answer_BCHW: Tensor, *parts_BCHW: Tensor) -> tuple[list[float], float]:
    """The multiples of some parts whose sum is nearest to an answer, and the share of its power that they explain."""
    answer_N, parts_NK = (
        answer_BCHW.flatten().double(),
        torch.stack([each.flatten() for each in parts_BCHW], 1).double(),
    )
    if not torch.isfinite(answer_N).all():
        return [float("nan")] * len(parts_BCHW), float("nan")
    shares_K = torch.linalg.lstsq(parts_NK, answer_N[:, None]).solution[:, 0]
    left = (answer_N - parts_NK @ shares_K).square().sum() / answer_N.square().sum()
    return shares_K.tolist(), 1.0 - float(left)


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
