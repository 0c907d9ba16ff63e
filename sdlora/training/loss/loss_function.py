"""A batch to its loss: noise, prediction, weights, and the prior term.

Shapes: B batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdlora.adapters.live.attach import Adapter
from sdlora.config.train import TrainConfig
from sdlora.models.bundle import Bundle, TextStates
from sdlora.training.inputs.examples import Batch
from sdlora.training.inputs.texts import TextSource
from sdlora.training.loss.diffusion import add_noise, target
from sdlora.training.loss.noise import even_positions, make_noise, perturb, sample_timesteps
from sdlora.training.loss.objective import image_weights, loss_per_image


class LossFunction:
    """Computes the training loss of batches on one device."""

    def __init__(self, config: TrainConfig, bundle: Bundle, adapter: Adapter, texts: TextSource) -> None:
        self._seed = config.seed
        self._objective = config.objective
        self._unmasked_weight = config.images.unmasked_weight
        self._bundle = bundle
        self._adapter = adapter
        self._texts = texts
        self._schedule = bundle.schedule.to(bundle.device)

    def loss(self, batch: Batch) -> Tensor:
        """The batch's mean loss, a scalar with gradients."""
        objective, device = self._objective, self._bundle.device
        shape_CHW = tuple(batch.latents_BCHW.shape[1:])
        noise_BCHW = make_noise(
            shape_CHW,  # type: ignore[arg-type]
            batch.generators,
            noise_offset=objective.noise_offset,
            random_offset=objective.noise_offset_random,
            multires_iterations=objective.multires_noise_iterations,
            multires_discount=objective.multires_noise_discount,
        ).to(device)
        is_even = objective.timestep_spacing == "even"
        evenly = even_positions(batch.numbers, self._seed) if is_even else None
        timesteps_B = sample_timesteps(batch.generators, objective, evenly).to(device)
        latents_BCHW = batch.latents_BCHW.to(device)
        input_noise_BCHW = perturb(
            noise_BCHW,
            batch.generators,
            objective.input_perturbation,
            random_strength=objective.input_perturbation_random,
        )
        noisy_BCHW = add_noise(latents_BCHW, input_noise_BCHW, timesteps_B, self._schedule)
        # Perturbed noise goes into the input alone: the target stays the noise that it was before.
        target_BCHW = target(latents_BCHW, noise_BCHW, timesteps_B, self._schedule)
        predicted_BCHW = self._predict(batch, noisy_BCHW, timesteps_B, self._states(batch))
        loss_B = self._distance(predicted_BCHW, target_BCHW, timesteps_B, batch.mask_B1HW, self._unmasked_weight)
        loss_B = loss_B * image_weights(batch.is_class_B.to(device), objective) * batch.loss_weights_B.to(device)
        if objective.prior_preservation == "base_prediction":
            loss_B = loss_B + objective.prior_weight * self._prior_loss(batch, noisy_BCHW, timesteps_B)
        if objective.prior_outside_mask and batch.mask_B1HW is not None:
            outside_B = self._loss_outside(batch, batch.mask_B1HW, noisy_BCHW, timesteps_B, predicted_BCHW)
            loss_B = loss_B + objective.prior_outside_mask * outside_B
        # Divided by the images, not by their weights: a weight of 0.5
        # halves an image's say, in a batch of its kind too.
        return loss_B.mean()

    def _loss_outside(
        self, batch: Batch, mask_B1HW: Tensor, noisy_BCHW: Tensor, timesteps_B: Tensor, predicted_BCHW: Tensor
    ) -> Tensor:
        """How far the adapter moves predictions outside the mask (loss_B), each pixel there counting alike."""
        with torch.no_grad(), self._adapter.disabled():
            # Encoded inside as well: where a text encoder is trained, its adapter must be off for the base's answer.
            base_BCHW = self._predict(batch, noisy_BCHW, timesteps_B, self._states(batch))
        return self._distance(predicted_BCHW, base_BCHW, timesteps_B, 1.0 - mask_B1HW, 0.0)

    def _prior_loss(self, batch: Batch, noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """How far the adapter moves predictions for captions without the trigger (loss_B)."""
        captions, beside = (
            [self._objective.prior_prompt or text for text in texts]
            for texts in (batch.prior_captions, batch.prior_captions_beside)
        )
        with torch.no_grad(), self._adapter.disabled():
            # The base's answer is taken from the same weights with the adapter switched off: no second UNet in memory.
            base_BCHW = self._predict(batch, noisy_BCHW, timesteps_B, self._texts.states(captions, beside))
        predicted_BCHW = self._predict(batch, noisy_BCHW, timesteps_B, self._texts.states(captions, beside))
        return self._distance(predicted_BCHW, base_BCHW, timesteps_B, batch.mask_B1HW, self._unmasked_weight)

    def _states(self, batch: Batch) -> TextStates:
        return self._texts.states(batch.captions, batch.captions_beside)

    def _predict(self, batch: Batch, noisy_BCHW: Tensor, timesteps_B: Tensor, states: TextStates) -> Tensor:
        if batch.inpaint_B5HW is not None:
            noisy_BCHW = torch.cat([noisy_BCHW, batch.inpaint_B5HW.to(noisy_BCHW)], dim=1)
        unet_timesteps_B = self._schedule.unet_timesteps_T[timesteps_B]
        return self._bundle.family.predict(self._bundle, noisy_BCHW, unet_timesteps_B, states, batch.size_conditions)

    def _distance(
        self,
        predicted_BCHW: Tensor,
        target_BCHW: Tensor,
        timesteps_B: Tensor,
        mask_B1HW: Tensor | None,
        unmasked_weight: float,
    ) -> Tensor:
        return loss_per_image(
            predicted_BCHW,
            target_BCHW,
            timesteps_B,
            self._objective,
            schedule=self._schedule,
            mask_B1HW=mask_B1HW,
            unmasked_weight=unmasked_weight,
        )
