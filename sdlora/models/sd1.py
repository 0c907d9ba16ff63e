"""Stable Diffusion 1.x and 2.x: one text encoder, no size conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sdlora.config.base_model import FamilyName, Prediction
from sdlora.models.bundle import Bundle, TextStates, run_unet
from sdlora.models.components import TextEncoder
from sdlora.models.size_conditions import SizeConditions
from sdlora.models.text import encode_with, layer_states


@dataclass(frozen=True)
class StableDiffusion:
    """SD 1.x or 2.x; an implementation of `sdlora.models.bundle.Family`, which documents the methods."""

    name: FamilyName
    native_resolution: int
    modelspec_implementation: str = "diffusers"

    def base_model_version(self, prediction: Prediction) -> str:
        """sd_v1, sd_v1_v, sd_v2 or sd_v2_v."""
        return f"sd_v{self.name[-1]}" + ("_v" if prediction == "v_prediction" else "")

    def modelspec_architecture(self, prediction: Prediction) -> str:
        """SD 2's two resolutions go with what they predict."""
        if self.name == "sd1":
            return "stable-diffusion-v1"
        return "stable-diffusion-v2-768-v" if prediction == "v_prediction" else "stable-diffusion-v2-512"

    def encode_text(
        self, bundle: Bundle, captions: Sequence[str], max_tokens: int = 225, weights: bool = True
    ) -> TextStates:
        """The layer `clip_skip` from the end, through the final layer norm."""
        states = encode_with(
            bundle.text_encoders[0],
            bundle.tokenizers[0],
            captions,
            lambda output, encoder: layer_states(output, encoder, bundle.clip_skip),
            max_tokens=max_tokens,
            weights=weights,
            new_tokens=bundle.new_tokens,
        )
        return TextStates(states.states_BTD)

    def text_layers(self, text_encoders: Sequence[TextEncoder], clip_skip: int) -> tuple[int, ...]:
        """All up to the one that clip_skip chooses."""
        return (text_encoders[0].config.num_hidden_layers - clip_skip + 1,)

    def full_size_conditions(self, width_px: int, height_px: int) -> SizeConditions:
        """Given for uniformity; the UNet takes none."""
        return SizeConditions(height_px, width_px, 0, 0, height_px, width_px)

    def added_conditions(
        self, text_states: TextStates, size_conditions: Sequence[Sequence[int]] | None
    ) -> dict[str, Tensor] | None:
        """None: these UNets see nothing but latents, time and text."""
        return None

    def predict(
        self,
        bundle: Bundle,
        noisy_BCHW: Tensor,
        timesteps_B: Tensor,
        text_states: TextStates,
        size_conditions: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """The UNet's output; size conditions are passed over."""
        return run_unet(bundle, noisy_BCHW, timesteps_B, text_states, None)


SD1 = StableDiffusion("sd1", native_resolution=512)
SD2 = StableDiffusion("sd2", native_resolution=512)
