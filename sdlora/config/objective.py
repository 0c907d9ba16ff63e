"""What is minimised: noise, timesteps, loss and prior preservation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sdlora.config.section import Section


class ObjectiveConfig(Section):
    loss: Literal["mse", "l1", "huber", "smooth_l1"] = "mse"
    """Distance between prediction and target; smooth_l1 is huber divided by its turning point."""

    huber_delta: float = Field(default=0.1, gt=0)
    """Where huber and smooth_l1 turn from square to straight."""

    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How Huber's turning point falls with noise, from 1 to huber_delta; constant keeps it (Khrapov et al. 2024)."""

    weighting: Literal["none", "min_snr", "soft_min_snr", "debiased"] = "none"
    """Loss weight by timestep: min_snr (Hang et al. 2023), the same with a smooth cap (Crowson et al. 2024) or debiased
    (Yu et al. 2024). With v-prediction and rectified flow the same weight on the same error in the image."""

    min_snr_gamma: float = Field(default=5.0, gt=0)
    """Cap of the min_snr and soft_min_snr weights; 5 is usual, anime SDXL sets often take 8."""

    v_loss_like_epsilon: bool = False
    """With v-prediction weigh timesteps as an epsilon loss does, by snr / (snr + 1) (sd-scripts'
    scale_v_pred_loss_like_noise_pred); with rectified flow by its own factor for that, (1 - t)^2."""

    noise_offset: float = Field(default=0.0, ge=0, le=1)
    """Add a constant per channel to the noise, for very dark and bright images (Guttenberg 2023); 0.05 is usual."""

    noise_offset_random: bool = False
    """Draw each image's noise offset between 0 and noise_offset."""

    multires_noise_iterations: int = Field(default=0, ge=0, le=10)
    """Levels of multi-resolution noise (Whitaker 2023); 0 is off, 6 is usual."""

    multires_noise_discount: float = Field(default=0.3, ge=0, le=1)
    """Strength of each coarser level."""

    input_perturbation: float = Field(default=0.0, ge=0, le=1)
    """Extra noise on the UNet's input only (Ning et al. 2023); 0.1 is usual."""

    input_perturbation_random: bool = False
    """Draw each image's perturbation between 0 and input_perturbation."""

    min_timestep: int = Field(default=0, ge=0, le=999)
    """Lowest timestep trained."""

    max_timestep: int = Field(default=999, ge=0, le=999)
    """Highest timestep trained."""

    timestep_distribution: Literal["uniform", "logit_normal", "cubic"] = "uniform"
    """How timesteps are drawn: evenly, mostly middle ones, or mostly noisy ones."""

    timestep_spacing: Literal["independent", "even"] = "independent"
    """How the timesteps of successive images go together: independent, or even, so that those of a batch and of any
    stretch of steps fill the range without gaps, which lowers the chance in gradients (Kingma et al. 2021)."""

    timestep_shift: float = Field(default=1.0, gt=0, le=100)
    """Move drawn timesteps towards noise, as shift t / (1 + (shift - 1) t) of their share t (Esser et al. 2024); 1
    leaves them alone, 2.5 or 3 is usual for rectified flow."""

    prior_preservation: Literal["none", "class_images", "base_prediction"] = "none"
    """Keep what the base knows: class images (DreamBooth), or match the frozen base's own predictions."""

    prior_weight: float = Field(default=1.0, gt=0)
    """Weight of the prior term."""

    prior_prompt: str = ""
    """Caption for base_prediction; empty takes each image's own caption with the trigger taken out."""

    prior_outside_mask: float = Field(default=0.0, ge=0.0, le=10.0)
    """Outside the mask hold the prediction to the base model's own, with this weight; 1 is usual. Needs images.mask."""

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        problems = []
        if self.min_timestep > self.max_timestep:
            problems.append(f"min_timestep ({self.min_timestep}) is above max_timestep ({self.max_timestep})")
        for name in ("noise_offset", "input_perturbation"):
            if getattr(self, f"{name}_random") and not getattr(self, name):
                problems.append(f"{name}_random has no effect without {name}")
        if problems:
            raise ValueError("\n".join(problems))
        return self
