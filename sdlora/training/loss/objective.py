"""The training loss: one number an image, from prediction and target to weights by timestep and mask.

Everything is computed in fp32, whatever type the model runs in.

Prior preservation comes in two forms. With class images (Ruiz et al. 2023, DreamBooth) these are trained like all
others and `image_weights` gives them their own weight. With the base's own prediction the target of the prior term is
what the frozen base predicts for the same noisy input: call `loss_per_image` once more with that prediction as target
and add it times ObjectiveConfig.prior_weight.

Legend: B batch, C channels, H and W latent height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdlora.config.base_model import Prediction
from sdlora.config.objective import ObjectiveConfig
from sdlora.models.schedule import NoiseSchedule
from sdlora.training.loss.diffusion import signal_and_noise_rates, snr

_SMALLEST_SNR = 1e-3
"""Stands in for 0 where a weight would be infinite. Stable Diffusion's schedule ends at 0.0047."""


def loss_per_image(
    predicted_BCHW: Tensor,
    target_BCHW: Tensor,
    timesteps_B: Tensor,
    objective: ObjectiveConfig,
    *,
    schedule: NoiseSchedule,
    mask_B1HW: Tensor | None = None,
    unmasked_weight: float = 0.0,
) -> Tensor:
    """Loss of each image, fp32: distance by objective.loss, averaged under the mask, times the timestep's weight.

    mask_B1HW: 1 where it matters, 0 where unmasked_weight holds, at latent size. Returns loss_B.
    """
    residual_BCHW = predicted_BCHW.float() - target_BCHW.float()
    if objective.loss in ("huber", "smooth_l1"):
        delta_B = huber_delta(timesteps_B, schedule, objective.huber_delta, objective.huber_schedule)
        delta_B111 = delta_B[:, None, None, None]
        distance_BCHW = pseudo_huber(residual_BCHW, delta_B111)
        if objective.loss == "smooth_l1":
            # Divided by delta the slope far out is 2 everywhere; Huber's shrinks with delta towards the noisy end.
            distance_BCHW = distance_BCHW / delta_B111
    elif objective.loss == "l1":
        distance_BCHW = residual_BCHW.abs()
    else:
        distance_BCHW = residual_BCHW**2
    loss_B = masked_mean(distance_BCHW, mask_B1HW, unmasked_weight)
    return loss_B * timestep_weights(timesteps_B, objective, schedule)


def image_weights(is_class_B: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Factor on each image's loss, fp32: prior_weight for class images, 1 for all others (weights_B)."""
    ones_B = torch.ones(is_class_B.shape, dtype=torch.float32, device=is_class_B.device)
    return torch.where(is_class_B, objective.prior_weight * ones_B, ones_B)


def timestep_weights(timesteps_B: Tensor, objective: ObjectiveConfig, schedule: NoiseSchedule) -> Tensor:
    """Factor on each image's loss by objective.weighting, fp32 and finite at every timestep (weights_B)."""
    snr_B, prediction = snr(timesteps_B, schedule), schedule.prediction
    if objective.weighting == "min_snr":
        weights_B = min_snr_weights(snr_B, objective.min_snr_gamma, prediction)
    elif objective.weighting == "soft_min_snr":
        weights_B = soft_min_snr_weights(snr_B, objective.min_snr_gamma, prediction)
    elif objective.weighting == "debiased":
        weights_B = debiased_weights(snr_B, prediction)
    else:
        weights_B = torch.ones_like(snr_B)
    if objective.v_loss_like_epsilon and prediction != "epsilon":
        # An error in v is sqrt((snr + 1) / snr) times that in epsilon, so this makes it an epsilon loss.
        weights_B = weights_B * snr_B / _errors_of_image(snr_B, prediction)
    return weights_B


def _errors_of_image(snr_B: Tensor, prediction: Prediction) -> Tensor:
    """How many times an error in v, or in the velocity of a flow, is the one in the image it stands for, squared.

    On v's circle the image is signal * noisy - spread * v, and spread^2 = 1 / (snr + 1); on a flow's line it is
    noisy - spread * velocity, and spread = 1 / (sqrt(snr) + 1).
    """
    return (snr_B.sqrt() + 1.0) ** 2 if prediction == "flow" else snr_B + 1.0


def min_snr_weights(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Loss weight per image, capping easy low-noise steps (Hang et al. 2023, section 3.4).

    snr_B: signal-to-noise ratio at each image's timestep, 0 or more. gamma: cap, usually 5. Returns weights_B:
    min(snr, gamma) / snr for epsilon, / (snr + 1) for v, / (sqrt(snr) + 1)^2 for a flow: one weight on the error in the
    image, told in what is predicted. At snr 0 these are 1 and 0: with v-prediction the step of pure noise has no
    weight, as in the paper.
    """
    if prediction == "epsilon":
        # At snr 0 this is inf, which the clamp makes 1; min(snr, gamma) / snr would be NaN there.
        return (gamma / snr_B).clamp(max=1.0)
    return snr_B.clamp(max=gamma) / _errors_of_image(snr_B, prediction)


def soft_min_snr_weights(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """min_snr_weights with a cap that sets in smoothly: snr gamma / (snr + gamma) in place of min(snr, gamma).

    Crowson et al. 2024 (Hourglass Diffusion Transformers, section 3.4), for a loss on epsilon, v or velocity. Returns
    weights_B.
    """
    if prediction == "epsilon":
        return gamma / (snr_B + gamma)
    return snr_B * gamma / ((snr_B + gamma) * _errors_of_image(snr_B, prediction))


def debiased_weights(snr_B: Tensor, prediction: Prediction) -> Tensor:
    """Loss weight per image that undoes the bias towards low noise: 1 / sqrt(snr) (Yu et al. 2024).

    The paper weighs the error in epsilon; an error in v is sqrt((snr + 1) / snr) times as large, so that the same
    objective has the weight sqrt(snr) / (snr + 1) on v, and sqrt(snr) / (sqrt(snr) + 1)^2 on a flow's velocity. At snr
    0 epsilon's weight is held finite. Returns weights_B.
    """
    if prediction == "epsilon":
        return snr_B.clamp(min=_SMALLEST_SNR).rsqrt()
    return snr_B.sqrt() / _errors_of_image(snr_B, prediction)


def pseudo_huber(residual: Tensor, delta: Tensor | float) -> Tensor:
    """Smooth Huber distance, 2 delta (sqrt(r^2 + delta^2) - delta) (Khrapov et al. 2024).

    It is r^2 for residuals much below delta, as mse, and 2 delta |r| for those much above.
    """
    # sqrt(r^2 + d^2) - d would cancel to nothing for small r; this is the same number without the subtraction.
    return 2.0 * delta * residual**2 / ((residual**2 + delta**2).sqrt() + delta)


def huber_delta(timesteps_B: Tensor, noise: NoiseSchedule, delta: float, schedule: str) -> Tensor:
    """Huber's turning point at each timestep, from 1 without noise to `delta` at full noise (Khrapov et al. 2024).

    constant     delta everywhere
    exponential  delta^(t / T)
    snr          (1 - delta) / (1 + s)^2 + delta, with s the noise-to-signal ratio by amplitude
    Returns delta_B, fp32.
    """
    signal_B, spread_B = signal_and_noise_rates(noise, timesteps_B)
    if schedule == "exponential":
        return delta ** (timesteps_B.float() / len(noise))
    if schedule == "snr":
        # 1 / (1 + spread / signal), written so that it is finite where there is no signal.
        return (1.0 - delta) * (signal_B / (signal_B + spread_B)) ** 2 + delta
    return torch.full_like(signal_B, delta)


def masked_mean(distance_BCHW: Tensor, mask_B1HW: Tensor | None, unmasked_weight: float) -> Tensor:
    """Weighted mean of each image's distances (loss_B).

    The weight is 1 inside the mask and unmasked_weight outside. The sum is divided by the sum of weights, not by the
    number of pixels, so an image with a small mask counts as much as one with a large one. An image whose weights are
    all 0 has nothing to learn from: its loss is 0.
    """
    if mask_B1HW is None:
        return distance_BCHW.mean(dim=(1, 2, 3))
    inside_B1HW = mask_B1HW.to(distance_BCHW.device, torch.float32)
    weights_B1HW = unmasked_weight + (1.0 - unmasked_weight) * inside_B1HW
    total_B = (distance_BCHW * weights_B1HW).sum(dim=(1, 2, 3))
    weight_B = weights_B1HW.sum(dim=(1, 2, 3)) * distance_BCHW.shape[1]
    # The clamp is for the gradient: where() also runs back through the branch not taken, and 0 / 0 there gives NaN.
    return torch.where(weight_B > 0, total_B / weight_B.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
