"""A loaded base model, the family whose ways it has, and what passes through it.

Shapes: B images, T text positions (77 a chunk), D text width, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from sdlora.config.base_model import BaseModelConfig, FamilyName, Prediction
from sdlora.models.components import TextEncoder
from sdlora.models.new_tokens import NewTokens
from sdlora.models.schedule import NoiseSchedule
from sdlora.models.size_conditions import SizeConditions


@dataclass(frozen=True)
class TextStates:
    """Encoded captions: states_BTD for cross-attention, and SDXL's pooled_BD of the whole caption."""

    states_BTD: Tensor
    pooled_BD: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextStates:
        """The same on another device, in another number type."""
        pooled_BD = self.pooled_BD.to(device, dtype) if self.pooled_BD is not None else None
        return TextStates(self.states_BTD.to(device, dtype), pooled_BD)


class Family(Protocol):
    """What differs between the families of Stable Diffusion, behind one small interface."""

    @property
    def name(self) -> FamilyName:
        """sd1, sd2 or sdxl."""

    @property
    def native_resolution(self) -> int:
        """Edge in pixels that the family was trained at; `Bundle.native_resolution` knows the model at hand."""

    @property
    def modelspec_implementation(self) -> str:
        """ModelSpec's name of the reference implementation."""

    def base_model_version(self, prediction: Prediction) -> str:
        """What kohya's ss_base_model_version says of the family, such as sd_v1 or sdxl_base_v1-0."""

    def modelspec_architecture(self, prediction: Prediction) -> str:
        """ModelSpec's architecture, without the `/lora` of an adapter."""

    def encode_text(
        self, bundle: Bundle, captions: Sequence[str], max_tokens: int = 225, weights: bool = True
    ) -> TextStates:
        """Captions to text states, as long as the longest of them needs; gradients flow to the text encoders.

        max_tokens: 75, 150 or 225. weights: read (word:1.2) and [word], see `sdlora.models.prompts`.
        """

    def text_layers(self, text_encoders: Sequence[TextEncoder], clip_skip: int) -> tuple[int, ...]:
        """How many layers of each text encoder, from the first, have a say in the text states; later ones have none."""

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


@dataclass
class Bundle:
    """A base model: frozen modules in eval mode, their tokenizers, noise schedule and family.

    `notes` are sentences for the user, written while it loaded and whenever it has to change something. Identities are
    hashes for cache keys: `vae_identity` and `text_identity` cover all that shapes latents and text states (weights,
    precision, clip_skip), `identity` the weights of the whole model.
    """

    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: list[TextEncoder]
    tokenizers: list[CLIPTokenizer]
    schedule: NoiseSchedule
    config: BaseModelConfig
    source: str
    dtype: torch.dtype
    native_resolution: int
    identity: str
    vae_identity: str
    text_identity: str
    clip_skip: int = 1
    new_tokens: NewTokens = field(default_factory=NewTokens)
    """Words beside the vocabulary's, for the text encoders."""
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the UNet is; VAE and text encoders may be elsewhere while they aren't needed."""
        return next(self.unet.parameters()).device

    def to(self, device: torch.device | str) -> Bundle:
        """Move every module to a device, in place."""
        for module in (self.unet, self.vae, *self.text_encoders):
            module.to(device)
        return self


def join_text_states(states: Sequence[TextStates], empty: TextStates, positions: int = 0) -> TextStates:
    """Text states of single captions as one batch; shorter ones are filled up with chunks of the empty caption.

    states: at least one. empty: the encoded caption "", one chunk. positions: the least length of all, in whole chunks.
    """
    # By chunks of the empty caption and not by zeros: the UNet has never seen zeros there.
    longest = max(positions, *(item.states_BTD.shape[1] for item in states))
    chunk_BTD = empty.states_BTD
    filled = []
    for item in states:
        missing = (longest - item.states_BTD.shape[1]) // chunk_BTD.shape[1]
        fill_BTD = chunk_BTD.to(item.states_BTD).expand(len(item.states_BTD), -1, -1)
        filled.append(torch.cat([item.states_BTD, *[fill_BTD] * missing], dim=1))
    pooled = [item.pooled_BD for item in states if item.pooled_BD is not None]
    return TextStates(torch.cat(filled), torch.cat(pooled) if pooled else None)


def run_unet(
    bundle: Bundle,
    noisy_BCHW: Tensor,
    timesteps_B: Tensor,
    text_states: TextStates,
    added_conditions: dict[str, Tensor] | None,
) -> Tensor:
    """The UNet's raw output (epsilon or v) in the base model's number type."""
    # From the cache they may be on the CPU, and in the text encoder's number type.
    states_BTD = text_states.states_BTD.to(bundle.device, bundle.dtype)
    predicted_BCHW: Tensor = bundle.unet(
        noisy_BCHW.to(bundle.device, bundle.dtype),
        timesteps_B.to(bundle.device),
        encoder_hidden_states=states_BTD,
        added_cond_kwargs=added_conditions,
        return_dict=False,
    )[0]
    return predicted_BCHW
