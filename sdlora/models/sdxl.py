"""SDXL: two text encoders, a pooled text state and size conditions (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.config.base_model import FamilyName, Prediction
from sdlora.constants import LATENT_FACTOR
from sdlora.models.bundle import Bundle, TextStates, run_unet
from sdlora.models.components import TextEncoder
from sdlora.models.size_conditions import SizeConditions
from sdlora.models.text import encode_with, penultimate_states


@dataclass(frozen=True)
class StableDiffusionXL:
    """SDXL; an implementation of `sdlora.models.bundle.Family`, which documents the methods."""

    name: FamilyName = "sdxl"
    native_resolution: int = 1024
    modelspec_implementation: str = "https://github.com/Stability-AI/generative-models"

    def base_model_version(self, prediction: Prediction) -> str:
        """One name for epsilon and v."""
        return "sdxl_base_v1-0"

    def modelspec_architecture(self, prediction: Prediction) -> str:
        """One name for epsilon and v."""
        return "stable-diffusion-xl-v1-base"

    def encode_text(
        self, bundle: Bundle, captions: Sequence[str], max_tokens: int = 225, weights: bool = True
    ) -> TextStates:
        """The last layer but one of both encoders side by side; pooled is the second's, of the first chunk."""
        first, second = (
            encode_with(
                encoder,
                tokenizer,
                captions,
                penultimate_states,
                max_tokens=max_tokens,
                weights=weights,
                new_tokens=bundle.new_tokens,
                index=index,
            )
            for index, (encoder, tokenizer) in enumerate(zip(bundle.text_encoders, bundle.tokenizers, strict=True))
        )
        return TextStates(torch.cat([first.states_BTD, second.states_BTD], dim=-1), second.pooled_BD)

    def text_layers(self, text_encoders: Sequence[TextEncoder], clip_skip: int) -> tuple[int, ...]:
        """The first encoder's last layer is passed over; the second's feeds the pooled state."""
        first, second = (encoder.config.num_hidden_layers for encoder in text_encoders)
        return first - 1, second

    def full_size_conditions(self, width_px: int, height_px: int) -> SizeConditions:
        """Original size is target size, no crop."""
        return SizeConditions(height_px, width_px, 0, 0, height_px, width_px)

    def added_conditions(
        self, text_states: TextStates, size_conditions: Sequence[Sequence[int]] | None
    ) -> dict[str, Tensor] | None:
        """Pooled text and the six numbers of SizeConditions; those in float32, as bf16 would round 837 px to 836."""
        assert text_states.pooled_BD is not None, "SDXL's text states have a pooled part"
        assert size_conditions is not None, "SDXL needs the size of each image"
        pooled_BD = text_states.pooled_BD
        sizes_B6 = torch.tensor([list(sizes) for sizes in size_conditions], dtype=torch.float32)
        return {"text_embeds": pooled_BD, "time_ids": sizes_B6.to(pooled_BD.device)}

    def predict(
        self,
        bundle: Bundle,
        noisy_BCHW: Tensor,
        timesteps_B: Tensor,
        text_states: TextStates,
        size_conditions: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """The UNet's output; without size conditions the images count as uncropped."""
        if size_conditions is None:
            height_px, width_px = (LATENT_FACTOR * edge for edge in noisy_BCHW.shape[2:])
            size_conditions = [self.full_size_conditions(width_px, height_px)] * len(noisy_BCHW)
        text_states = text_states.to(bundle.device, bundle.dtype)
        added = self.added_conditions(text_states, size_conditions)
        return run_unet(bundle, noisy_BCHW, timesteps_B, text_states, added)


SDXL = StableDiffusionXL()
