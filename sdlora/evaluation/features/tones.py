"""How saturated images are, and how much light and dark differ in them.

Legend: N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from PIL import Image
from torch import Tensor


class ToneScorer:
    """Two numbers an image, in the form of a feature, so that they are kept as features are."""

    is_centred = False
    name = "tones"
    identity = "tones/1"

    def image_features(self, images: Sequence[Image.Image], /) -> Tensor:
        """tones_N2: saturation, contrast."""
        return torch.tensor([[saturation(image), contrast(image)] for image in images])

    def text_features(self, texts: Sequence[str], /) -> Tensor | None:
        """None."""
        return None


def saturation(image: Image.Image) -> float:
    """Mean saturation (HSV, 0 to 1) of an RGB image."""
    return float(numpy.asarray(image.convert("HSV"), dtype=numpy.float32)[..., 1].mean() / 255)


def contrast(image: Image.Image) -> float:
    """Standard deviation of the luminance (0 to 0.5) of an RGB image."""
    return float((numpy.asarray(image.convert("L"), dtype=numpy.float32) / 255).std())
