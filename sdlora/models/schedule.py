"""The noise that a model was trained with: how much of it at each timestep, and what the UNet predicts there.

All kinds mix image and noise as `signal * image + spread * noise`:

epsilon, v_prediction  signal^2 + spread^2 = 1 by alpha-bar (Ho et al. 2020), the UNet is told the timestep's number
edm_v                  the same for sigma = spread / signal, evenly spaced in its logarithm; it is told ln(sigma) / 4
                       (Karras et al. 2022, table 1, with a data spread of 1, as CosXL was trained)
flow                   signal + spread = 1, the straight line of rectified flow (Liu et al. 2022); it is told 1000 times
                       the share of noise (Esser et al. 2024)

Shapes: T training timesteps, B images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdlora.config.base_model import Prediction
from sdlora.constants import SIGMA_MAX, SIGMA_MIN
from sdlora.errors import ModelError

STEPS = 1000
"""Training timesteps of rectified flow and EDM; what a flow's UNet is told at pure noise."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Factors on image and noise at each training timestep, and what the UNet predicts there.

    signal_T falls and spread_T rises; the last signal is 0 with zero terminal SNR and rectified flow. They are float64,
    float32 once moved to a device. unet_timesteps_T: what the UNet is told at each. shift: of rectified flow's steps in
    generating (Esser et al. 2024, section 5.3.2).
    """

    signal_T: Tensor
    spread_T: Tensor
    unet_timesteps_T: Tensor
    prediction: Prediction
    zero_terminal_snr: bool = False
    shift: float = 1.0

    @classmethod
    def of_alphas(
        cls, alphas_cumprod_T: Tensor, prediction: Prediction = "epsilon", zero_terminal_snr: bool = False
    ) -> NoiseSchedule:
        """The schedule with this share of signal power (alpha-bar) at each timestep."""
        # Through fp32, which is what diffusers and all trainers keep alpha-bar in.
        alphas_T = alphas_cumprod_T.float().double()
        timesteps_T = torch.arange(len(alphas_T))
        return cls(alphas_T.sqrt(), (1.0 - alphas_T).sqrt(), timesteps_T, prediction, zero_terminal_snr)

    def __len__(self) -> int:
        return len(self.signal_T)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same on a device, the factors in float32."""
        return replace(
            self,
            signal_T=self.signal_T.to(device, torch.float32),
            spread_T=self.spread_T.to(device, torch.float32),
            unet_timesteps_T=self.unet_timesteps_T.to(device),
        )

    def alpha_bars(self) -> Tensor:
        """Share of signal power where it and the noise's add up to 1, as in all but rectified flow."""
        assert self.prediction != "flow", "rectified flow has no alpha-bar"
        return (self.signal_T**2).float()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Least and largest noise, as multiples of the signal."""
        return tuple(float(self.spread_T[index] / self.signal_T[index]) for index in (0, -1))  # type: ignore[return-value]

    def rates_at(self, unet_timestep: float) -> tuple[float, float]:
        """Factors on image and noise where the UNet is told so, be it between two training timesteps."""
        if self.prediction == "flow":
            spread = min(max(unet_timestep / STEPS, 0.0), 1.0)
            return 1.0 - spread, spread
        if self.prediction == "edm_v":
            sigma = math.exp(4.0 * unet_timestep)
            return 1.0 / math.hypot(sigma, 1.0), sigma / math.hypot(sigma, 1.0)
        index = min(max(round(unet_timestep), 0), len(self) - 1)
        return float(self.signal_T[index]), float(self.spread_T[index])


def build_schedule(
    scheduler_config: Mapping[str, Any],
    prediction: Prediction,
    zero_terminal_snr: bool,
    *,
    shift: float = 1.0,
    sigmas: tuple[float, float] = (SIGMA_MIN, SIGMA_MAX),
) -> NoiseSchedule:
    """The schedule of a scheduler_config.json. Raises ModelError for a kind of schedule that SD never used.

    shift: for rectified flow. sigmas: least and largest noise, for edm_v.
    """
    if prediction == "flow":
        return _flow_schedule(shift)
    if prediction == "edm_v":
        return _edm_schedule(*sigmas)
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
    return NoiseSchedule.of_alphas(alphas_cumprod_T, prediction, zero_terminal_snr)


def rescale_to_zero_terminal_snr(alphas_cumprod_T: Tensor) -> Tensor:
    """Shift and stretch sqrt(alpha-bar) so that its last value is 0 and its first stays (Lin et al. 2024, alg. 1)."""
    roots_T = alphas_cumprod_T.sqrt()
    first, last = roots_T[0].clone(), roots_T[-1].clone()
    return ((roots_T - last) * (first / (first - last))) ** 2


def _flow_schedule(shift: float) -> NoiseSchedule:
    """From a thousandth of noise to nothing else, evenly: shifts are the business of whoever draws or steps."""
    timesteps_T = torch.arange(1, STEPS + 1, dtype=torch.float64)
    spread_T = timesteps_T / STEPS
    return NoiseSchedule(1.0 - spread_T, spread_T, timesteps_T.float(), "flow", shift=shift)


def _edm_schedule(sigma_min: float, sigma_max: float) -> NoiseSchedule:
    logs_T = torch.linspace(math.log(sigma_min), math.log(sigma_max), STEPS, dtype=torch.float64)
    sigmas_T = logs_T.exp()
    signal_T = (sigmas_T**2 + 1.0).rsqrt()
    return NoiseSchedule(signal_T, sigmas_T * signal_T, (logs_T / 4).float(), "edm_v")
