"""Small images straight from latents, for looking on while an image is generated: a linear map instead of the VAE.

The map is fitted to the VAE at hand, by encoding one small picture of coloured patches, so it suits any model.
Shapes: B images, C latent channels, H and W latent height and width, P fitted cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor

from sdlora.models.bundle import Bundle
from sdlora.models.vae import encode_moments

_CELLS = 16
_CELL_PX = 8
_PATCHES = 6
_ENLARGED = 4
"""Pixels a latent cell gets on a side; the image itself has 8."""


class LatentColours:
    """Latents to small RGB images. The first call encodes one picture of 128 x 128 pixels."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._colours_C3: Tensor | None = None

    @torch.no_grad()
    def images(self, latents_BCHW: Tensor) -> list[Image.Image]:
        """One picture for each image, half its width and height."""
        if self._colours_C3 is None:
            self._colours_C3 = self._fit()
        pixels_BHW3 = _with_constant(latents_BCHW.float().cpu()) @ self._colours_C3
        bytes_BHW3 = ((pixels_BHW3.nan_to_num().clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
        height, width = latents_BCHW.shape[2:]
        return [
            Image.fromarray(array).resize((width * _ENLARGED, height * _ENLARGED), Image.Resampling.BICUBIC)
            for array in bytes_BHW3
        ]

    def _fit(self) -> Tensor:
        """Colours of a cell by least squares: [latent channels and a constant, 3]."""
        generator = torch.Generator().manual_seed(0)
        patches_BCHW = torch.rand(1, 3, _PATCHES, _PATCHES, generator=generator) * 2 - 1
        pixels_BCHW = functional.interpolate(patches_BCHW, size=_CELLS * _CELL_PX, mode="bilinear")
        latents_BCHW = encode_moments(self._bundle, pixels_BCHW)[0].cpu()
        colours_P3 = functional.avg_pool2d(pixels_BCHW, _CELL_PX).permute(0, 2, 3, 1).reshape(-1, 3)
        cells_PC = _with_constant(latents_BCHW).reshape(len(colours_P3), -1)
        solution: Tensor = torch.linalg.lstsq(cells_PC, colours_P3).solution
        return solution


def _with_constant(latents_BCHW: Tensor) -> Tensor:
    """Channels last, with a channel of ones."""
    channels_last = latents_BCHW.permute(0, 2, 3, 1)
    return torch.cat([channels_last, torch.ones_like(channels_last[..., :1])], dim=-1)
