"""Samplers by the names people know, as diffusers schedulers over a model's own noise schedule.

Spacing follows the tools that made the names: the samplers of k-diffusion spread their steps evenly over all training
timesteps, DDIM and LCM leave the last ones out. With zero terminal SNR every sampler begins at the very last timestep
("trailing", Lin et al. 2024, section 3.3). Models of rectified flow and EDM have schedulers of their own, which
diffusers offers for few samplers; the others are refused by name.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from sdlora.config.generate import Sampler, sampler_problem
from sdlora.errors import ConfigError
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


class _FlowEuler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler's steps along a flow's straight lines, with the members that the other schedulers have."""

    init_noise_sigma = 1.0

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Even steps from pure noise to none, shifted; diffusers' own end with one of a thousandth, which is lost."""
        sigmas = torch.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps).tolist()
        super().set_timesteps(device=device, sigmas=sigmas)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The latents themselves: a flow's are mixed as in training."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As noisy as the next step wants them."""
        noisy: Tensor = self.scale_noise(original_samples, timesteps, noise)
        return noisy


def make_scheduler(sampler: Sampler, schedule: NoiseSchedule, steps: int, device: torch.device | str = "cpu") -> Any:
    """A diffusers scheduler set to `steps` steps. Raises ConfigError for a sampler that has no form for the model."""
    if problem := sampler_problem(sampler, schedule.prediction):
        raise ConfigError("sampler", [problem])
    scheduler = _scheduler(sampler, schedule)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def _scheduler(sampler: Sampler, schedule: NoiseSchedule) -> Any:
    kind, settings = _KINDS[sampler]
    if schedule.prediction == "flow":
        if sampler == "Euler":
            return _FlowEuler(shift=schedule.shift)
        return kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=schedule.shift)
    if schedule.prediction == "edm_v":
        least, largest = schedule.sigma_range
        kind = EDMEulerScheduler if sampler == "Euler" else EDMDPMSolverMultistepScheduler
        return kind(
            sigma_min=least,
            sigma_max=largest,
            sigma_data=1.0,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
        )
    # diffusers' schedulers are made from betas: those that give the model's own noise levels back.
    alpha_bar_T: Tensor = schedule.alpha_bars().double().clamp(min=_SMALLEST_ALPHA_BAR)
    previous_T = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar_T[:-1]])
    known = inspect.signature(kind).parameters
    options = {
        "num_train_timesteps": len(schedule),
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
    return kind(**{name: value for name, value in options.items() if name in known})


def rescale_of(setting: float | Literal["auto"], bundle: Bundle) -> float:
    """The share of CFG rescaling that a setting means for this model."""
    if setting != "auto":
        return setting
    return _ZERO_SNR_RESCALE if bundle.schedule.zero_terminal_snr else 0.0


def takes_noise(scheduler: Any) -> bool:
    """Whether the scheduler's step accepts random generators."""
    return "generator" in inspect.signature(scheduler.step).parameters
