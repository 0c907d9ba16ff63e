"""The small interface that all Stable Diffusion families share, and the families there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sdlora.config.base_model import FamilyName, Prediction
from sdlora.models.bundle import Bundle, TextStates, join_text_states
from sdlora.models.schedule import NoiseSchedule
from sdlora.models.sd1 import SD1, SD2
from sdlora.models.sdxl import SDXL
from sdlora.models.size_conditions import SizeConditions

__all__ = [
    "FAMILIES",
    "Bundle",
    "Family",
    "NoiseSchedule",
    "SizeConditions",
    "TextStates",
    "join_text_states",
]


class Family(Protocol):
    """What differs between families. Shapes as in `sdlora.models.bundle`."""

    @property
    def name(self) -> FamilyName:
        """sd1, sd2 or sdxl."""

    @property
    def native_resolution(self) -> int:
        """Edge in pixels that the family was trained at; `Bundle.native_resolution` knows the model at hand."""

    @property
    def text_encoder_prefixes(self) -> tuple[str, ...]:
        """What kohya's key names call each text encoder."""

    @property
    def modelspec_implementation(self) -> str:
        """ModelSpec's name of the reference implementation."""

    def base_model_version(self, prediction: Prediction) -> str:
        """kohya's ss_base_model_version."""

    def modelspec_architecture(self, prediction: Prediction) -> str:
        """ModelSpec's architecture, without the `/lora` of an adapter."""

    def encode_text(
        self, bundle: Bundle, captions: Sequence[str], max_tokens: int = 225, weights: bool = True
    ) -> TextStates:
        """Captions to text states, as long as the longest of them needs; gradients flow to the text encoders.

        max_tokens: 75, 150 or 225. weights: read (word:1.2) and [word], see `sdlora.models.prompts`.
        """

    def full_size_conditions(self, width_px: int, height_px: int) -> SizeConditions:
        """Size conditions of an image that is neither cropped nor resized."""

    def added_conditions(
        self, text_states: TextStates, size_conditions: Sequence[Sequence[int]] | None
    ) -> dict[str, Tensor] | None:
        """The UNet's added_cond_kwargs; None where the family takes none."""

    def predict(
        self,
        bundle: Bundle,
        noisy_BCHW: Tensor,
        timesteps_B: Tensor,
        text_states: TextStates,
        size_conditions: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """The UNet's output: epsilon or v, as `bundle.schedule.prediction` says."""


FAMILIES: dict[FamilyName, Family] = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
