"""The noise schedule that a model was trained with.

Shapes: T training timesteps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdlora.config.base_model import Prediction
from sdlora.errors import ModelError


@dataclass(frozen=True)
class NoiseSchedule:
    """How much of the image is left at each timestep, and what the UNet predicts there.

    alphas_cumprod_T: alpha-bar, float32 on the CPU, falling; the last is exactly 0 with zero terminal SNR.
    """

    alphas_cumprod_T: Tensor
    prediction: Prediction
    zero_terminal_snr: bool


def build_schedule(
    scheduler_config: Mapping[str, Any], prediction: Prediction, zero_terminal_snr: bool
) -> NoiseSchedule:
    """The schedule of a scheduler_config.json. Raises ModelError for a kind of schedule that SD never used."""
    # Without a config, those of Stable Diffusion: all its versions were trained with these two.
    start, end = float(scheduler_config.get("beta_start", 0.00085)), float(scheduler_config.get("beta_end", 0.012))
    steps = int(scheduler_config.get("num_train_timesteps", 1000))
    kind = scheduler_config.get("beta_schedule", "scaled_linear")
    if scheduler_config.get("trained_betas") is not None:
        betas_T = torch.tensor(scheduler_config["trained_betas"], dtype=torch.float64)
    elif kind == "scaled_linear":
        betas_T = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif kind == "linear":
        betas_T = torch.linspace(start, end, steps, dtype=torch.float64)
    else:
        raise ModelError(
            f"beta_schedule '{kind}' in scheduler_config.json is not supported: scaled_linear or linear is"
        )
    # In float64: a product of a thousand factors gathers fp32's rounding.
    alphas_cumprod_T = torch.cumprod(1 - betas_T, dim=0)
    if zero_terminal_snr:
        alphas_cumprod_T = rescale_to_zero_terminal_snr(alphas_cumprod_T)
    return NoiseSchedule(alphas_cumprod_T.float(), prediction, zero_terminal_snr)


def rescale_to_zero_terminal_snr(alphas_cumprod_T: Tensor) -> Tensor:
    """Shift and stretch sqrt(alpha-bar) so that its last value is 0 and its first stays (Lin et al. 2024, alg. 1)."""
    roots_T = alphas_cumprod_T.sqrt()
    first, last = roots_T[0].clone(), roots_T[-1].clone()
    return ((roots_T - last) * (first / (first - last))) ** 2
