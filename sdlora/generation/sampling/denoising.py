"""The sampling loop: noise to latents under guidance, for a batch of images that share their timesteps.

Shapes: B images, T text positions, D text width, C channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdlora.generation.sampling.samplers import takes_noise
from sdlora.models.bundle import Bundle, TextStates
from sdlora.models.size_conditions import SizeConditions


@dataclass(frozen=True)
class Conditions:
    """What a batch is generated from at one step. Without `unconditional` guidance has no effect.

    `conditional` has one entry for each of the prompts joined by AND. With prompts c_k of weights w_k, the guided
    prediction is u + guidance * sum_k w_k (c_k - u) (Liu et al. 2022, Composable Diffusion, eq. 11).
    """

    conditional: tuple[TextStates, ...]
    weights_KB: Tensor
    """Weight of each of the K prompts of each image; on the CPU, where asking for it is not to wait for a card."""
    unconditional: TextStates | None
    """Only a single prompt of weight 1 can do without."""
    guidance_B: Tensor
    rescale_B: Tensor
    """Share of CFG rescaling (Lin et al. 2024, section 3.4); on the CPU, too."""
    size: SizeConditions
    one_by_one: bool = False
    """Whether each image passes the UNet by itself."""

    def predict(self, bundle: Bundle, inputs_BCHW: Tensor, timestep: Tensor) -> Tensor:
        """The guided prediction, in fp32."""
        count = len(inputs_BCHW)
        parts = [slice(index, index + 1) for index in range(count)] if self.one_by_one else [slice(count)]
        return torch.cat([self._predict(bundle, inputs_BCHW, timestep, rows) for rows in parts])

    def _predict(self, bundle: Bundle, inputs_BCHW: Tensor, timestep: Tensor, rows: slice) -> Tensor:
        """The same for some images: one UNet call with each image's conditional and unconditional rows side by side."""
        texts = [*self.conditional, *([] if self.unconditional is None else [self.unconditional])]
        pooled = [states.pooled_BD[rows] for states in texts if states.pooled_BD is not None]
        joined = TextStates(
            _interleaved([states.states_BTD[rows] for states in texts]), _interleaved(pooled) if pooled else None
        )
        noisy_BCHW = _interleaved([inputs_BCHW[rows]] * len(texts))
        timesteps_B = timestep.expand(len(noisy_BCHW)).to(bundle.device)
        sizes = [self.size] * len(noisy_BCHW)
        # Guidance takes a difference of two nearly equal predictions: in fp32, or half precision's rounding is
        # amplified.
        predicted_BCHW = bundle.family.predict(bundle, noisy_BCHW, timesteps_B, joined, sizes).float()
        if self.unconditional is None:
            return predicted_BCHW
        *conditional, unconditional_BCHW = (predicted_BCHW[index :: len(texts)] for index in range(len(texts)))
        combined_BCHW = combine(conditional, unconditional_BCHW, self.weights_KB[:, rows])
        return guided(combined_BCHW, unconditional_BCHW, self.guidance_B[rows], self.rescale_B[rows])


@dataclass(frozen=True)
class Step:
    """One finished step, counted from 1. `clean()` gives the picture the UNet sees in the noise, as latents."""

    number: int
    total: int
    clean: Callable[[], Tensor]


@dataclass(frozen=True)
class Hooks:
    """What happens around the steps. All are optional."""

    before_step: Callable[[float], None] | None = None
    """Called with the share of the steps that is done."""
    after_step: Callable[[Step], None] | None = None
    keep: Callable[[Tensor, int], Tensor] | None = None
    """Inpainting: (latents, number of their timestep) to latents whose kept part is put back."""
    is_cancelled: Callable[[], bool] | None = None


class CancelledError(Exception):
    """Generation was cancelled; what was finished before is kept by whoever called."""


@torch.no_grad()
def denoise(
    bundle: Bundle,
    scheduler: Any,
    latents_BCHW: Tensor,
    conditions: Callable[[int, int], Conditions],
    generators: Sequence[torch.Generator],
    *,
    first: int = 0,
    hooks: Hooks | None = None,
    inpaint_B5HW: Tensor | None = None,
) -> Tensor:
    """Clean latents, float32. latents_BCHW: noisy as the scheduler wants them at its timestep number `first`.

    conditions: what holds at a step (from 0) of how many. generators: one for each image, on the CPU, for samplers that
    add noise. inpaint: mask and masked picture, for an inpainting model. Raises CancelledError.
    """
    hooks = hooks or Hooks()
    timesteps = scheduler.timesteps[first:]
    # Or the scheduler looks its place up by the timestep, which in Heun's list stands twice.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    # Samplers that add noise take it from each image's own generator, so that a seed means one image in any batch.
    noise = {"generator": list(generators)} if takes_noise(scheduler) else {}
    for index, timestep in enumerate(timesteps):
        if hooks.is_cancelled is not None and hooks.is_cancelled():
            raise CancelledError
        if hooks.before_step is not None:
            hooks.before_step(index / len(timesteps))
        inputs_BCHW = scheduler.scale_model_input(latents_BCHW, timestep)
        seen_BCHW = inputs_BCHW if inpaint_B5HW is None else torch.cat([inputs_BCHW, inpaint_B5HW], dim=1)
        predicted_BCHW = conditions(index, len(timesteps)).predict(bundle, seen_BCHW, timestep)
        latents_BCHW = scheduler.step(predicted_BCHW, timestep, latents_BCHW, **noise).prev_sample
        if hooks.keep is not None:
            latents_BCHW = hooks.keep(latents_BCHW, first + index)
        if hooks.after_step is not None:
            hooks.after_step(
                Step(index + 1, len(timesteps), _clean(bundle, inputs_BCHW, predicted_BCHW, float(timestep)))
            )
    return latents_BCHW


def combine(conditional: Sequence[Tensor], unconditional_BCHW: Tensor, weights_KB: Tensor) -> Tensor:
    """The prediction that several prompts stand for together: u + sum_k w_k (c_k - u)."""
    if len(conditional) == 1 and bool((weights_KB == 1).all()):
        return conditional[0]  # not the same in floating point, and by far the usual case
    combined_BCHW = unconditional_BCHW
    for one_BCHW, weights_B in zip(conditional, weights_KB, strict=True):
        combined_BCHW = combined_BCHW + weights_B.view(-1, 1, 1, 1).to(one_BCHW.device) * (
            one_BCHW - unconditional_BCHW
        )
    return combined_BCHW


def guided(conditional_BCHW: Tensor, unconditional_BCHW: Tensor, guidance_B: Tensor, rescale_B: Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022), partly brought back to the conditional prediction's contrast."""
    shape = (-1, 1, 1, 1)
    guided_BCHW = unconditional_BCHW + guidance_B.view(shape) * (conditional_BCHW - unconditional_BCHW)
    if not rescale_B.any():
        return guided_BCHW
    contrast_B = conditional_BCHW.std(dim=(1, 2, 3)) / guided_BCHW.std(dim=(1, 2, 3))
    share_B = rescale_B.to(contrast_B.device)
    factor_B = share_B * contrast_B + (1 - share_B)
    return guided_BCHW * factor_B.view(shape)


def _clean(bundle: Bundle, inputs_BCHW: Tensor, predicted_BCHW: Tensor, timestep: float) -> Callable[[], Tensor]:
    """The clean latents that a prediction stands for; the UNet's inputs are mixed as in training by any sampler."""

    def clean() -> Tensor:
        signal, spread = bundle.schedule.rates_at(timestep)
        if bundle.schedule.prediction == "flow":
            return inputs_BCHW - spread * predicted_BCHW
        if bundle.schedule.prediction != "epsilon":
            return signal * inputs_BCHW - spread * predicted_BCHW
        # Near pure noise the signal is almost 0; the floor keeps the preview from dividing by it.
        return (inputs_BCHW - spread * predicted_BCHW) / max(signal, 1e-3)

    return clean


def _interleaved(tensors: Sequence[Tensor]) -> Tensor:
    """First rows of all tensors, then their second rows, and so on."""
    return torch.stack(list(tensors), dim=1).flatten(0, 1)
