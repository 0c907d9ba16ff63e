"""Images through the base model's own VAE: what is where, and how much changes there. Needs no download.

Legend: N images, C latent channels, G edge of a grid of latents, D width of a feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sdlora.constants import LATENT_FACTOR, MIB
from sdlora.models.bundle import Bundle
from sdlora.models.vae import encode_moments

LAYOUT_EDGE = 16
"""Cells to a side of the grid in which copies are looked for: with 512 px each stands for 32 px."""
_POOLED_EDGE = 4
_REMEMBERED_BYTES = 256 * MIB
"""Latents kept in memory: 4,096 of images of 512 px."""


class EncodedImages:
    """Latents of images; the newest are remembered, as each image is looked at in several ways in a row."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._known: dict[bytes, Tensor] = {}
        self.identity = f"{bundle.vae_identity}/{bundle.vae.dtype}"

    def __call__(self, image: Image.Image, /) -> Tensor:
        """The mean of an image's latents (latents_CHW, float32, on the CPU), its edges cut to whole latent cells."""
        key = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = _encode(self._bundle, image)
            while len(self._known) > 1 and sum(one.nbytes for one in self._known.values()) > _REMEMBERED_BYTES:
                self._known.pop(next(iter(self._known)))
        return self._known[key]


class LatentScorer:
    """Means and spreads of latents on a coarse grid: colours, tones and textures, and roughly where they are."""

    is_centred = True

    name = "latents"

    def __init__(self, encoded: EncodedImages) -> None:
        self._encoded = encoded
        self.identity = f"latents/1/{encoded.identity}"

    def image_features(self, images: Sequence[Image.Image], /) -> Tensor:
        """features_ND: means and standard deviations of each latent channel in 4 x 4 cells."""
        return torch.stack([pooled(self._encoded(image)) for image in images])

    def text_features(self, texts: Sequence[str], /) -> Tensor | None:
        """None: how well a prompt is followed is asked of the base model's UNet (see `losses.prompt_gain`)."""
        return None


class LayoutScorer:
    """The latents themselves on a grid: alike only for images that show the same at the same place."""

    is_centred = False
    name = "layout"

    def __init__(self, encoded: EncodedImages) -> None:
        self._encoded = encoded
        self.identity = f"layout/1/{encoded.identity}"

    def image_features(self, images: Sequence[Image.Image], /) -> Tensor:
        """features_ND, D = C x 16 x 16, in the order of the grid."""
        grids = [adaptive_avg_pool2d(self._encoded(image), LAYOUT_EDGE) for image in images]
        return torch.stack([grid_CGG.flatten() for grid_CGG in grids])

    def text_features(self, texts: Sequence[str], /) -> Tensor | None:
        """None."""
        return None


def pooled(latents_CHW: Tensor) -> Tensor:
    """features_D of one image's latents: mean and standard deviation of each channel in 4 x 4 cells."""
    means_CGG = adaptive_avg_pool2d(latents_CHW, _POOLED_EDGE)
    squares_CGG = adaptive_avg_pool2d(latents_CHW**2, _POOLED_EDGE)
    spreads_CGG = (squares_CGG - means_CGG**2).clamp(min=0).sqrt()
    return torch.cat([means_CGG.flatten(), spreads_CGG.flatten()])


def _encode(bundle: Bundle, image: Image.Image) -> Tensor:
    width_px, height_px = (max(1, edge // LATENT_FACTOR) * LATENT_FACTOR for edge in image.size)
    if (width_px, height_px) != image.size:
        image = image.resize((width_px, height_px), Image.Resampling.LANCZOS)
    pixels_HWC = numpy.asarray(image, dtype=numpy.float32) / 127.5 - 1
    pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()
    mean_BCHW, _ = encode_moments(bundle, pixels_CHW[None])
    return mean_BCHW[0].float().cpu()
