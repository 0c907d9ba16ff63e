"""Samplers by the names people know, as diffusers schedulers over a model's own noise schedule.

Spacing follows the tools that made the names: the samplers of k-diffusion spread their steps evenly over all training
timesteps, DDIM and LCM leave the last ones out. With zero terminal SNR every sampler begins at the very last timestep
("trailing", Lin et al. 2024, section 3.3).
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from sdlora.config.generate import Sampler
from sdlora.models.bundle import Bundle
from sdlora.models.schedule import NoiseSchedule

_ZERO_SNR_RESCALE = 0.7
"""Share of CFG rescaling that Lin et al. 2024 recommend."""

_SMALLEST_ALPHA_BAR = 2.0**-24  # zero terminal SNR would make the first sigma infinite

_KINDS: dict[Sampler, tuple[type, dict[str, Any]]] = {
    # DPM-Solver++ 2M (Lu et al. 2022), with the steps of Karras et al. 2022
    "DPM++ 2M Karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "DPM++ 2M": (DPMSolverMultistepScheduler, {}),
    "DPM++ SDE Karras": (
        DPMSolverSinglestepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, "lower_order_final": True},
    ),
    "DPM++ SDE": (DPMSolverSinglestepScheduler, {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}),
    "Euler": (EulerDiscreteScheduler, {}),
    "Euler a": (EulerAncestralDiscreteScheduler, {}),
    "Heun": (HeunDiscreteScheduler, {}),
    # As the scheduler configs of Stable Diffusion have them.
    "DDIM": (DDIMScheduler, {"timestep_spacing": "leading", "clip_sample": False, "set_alpha_to_one": False}),
    "UniPC": (UniPCMultistepScheduler, {}),
    "LCM": (LCMScheduler, {"timestep_spacing": "leading", "clip_sample": False, "set_alpha_to_one": False}),
}


def make_scheduler(sampler: Sampler, schedule: NoiseSchedule, steps: int, device: torch.device | str = "cpu") -> Any:
    """A diffusers scheduler set to `steps` steps."""
    kind, settings = _KINDS[sampler]
    # diffusers' schedulers are made from betas: those that give the model's own noise levels back.
    alpha_bar_T: Tensor = schedule.alphas_cumprod_T.double().clamp(min=_SMALLEST_ALPHA_BAR)
    previous_T = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar_T[:-1]])
    known = inspect.signature(kind).parameters
    options = {
        "num_train_timesteps": len(schedule.alphas_cumprod_T),
        "trained_betas": (1 - alpha_bar_T / previous_T).tolist(),
        "prediction_type": schedule.prediction,
        "timestep_spacing": "linspace",
        # One step off 0, as in the scheduler configs of all Stable Diffusion models.
        "steps_offset": 1,
        **settings,
    }
    if schedule.zero_terminal_snr:
        options |= {"timestep_spacing": "trailing", "steps_offset": 0}
    # Schedulers take different options; each gets those that it knows.
    scheduler = kind(**{name: value for name, value in options.items() if name in known})
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def rescale_of(setting: float | Literal["auto"], bundle: Bundle) -> float:
    """The share of CFG rescaling that a setting means for this model."""
    if setting != "auto":
        return setting
    return _ZERO_SNR_RESCALE if bundle.schedule.zero_terminal_snr else 0.0


def takes_noise(scheduler: Any) -> bool:
    """Whether the scheduler's step accepts random generators."""
    return "generator" in inspect.signature(scheduler.step).parameters
