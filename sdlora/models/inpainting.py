"""What an inpainting UNet sees beside the noisy latents: where it paints, and the picture that stays.

Shapes: B images, H and W height and width in pixels, h and w of latents (8 pixels a cell). The 9 channels of such a
UNet are 4 of noisy latents, 1 of the mask and 4 of the masked picture's latents, as in Rombach et al. 2022 (section
4.5) and Runway's sd-v1-5-inpainting.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sdlora.models.bundle import Bundle
from sdlora.models.recognition import INPAINTING_CHANNELS
from sdlora.models.vae import encode_moments


def is_inpainting(bundle: Bundle) -> bool:
    """Whether the bundle's UNet takes a mask and a picture."""
    return int(bundle.unet.config.in_channels) == INPAINTING_CHANNELS


def inpaint_conditions(bundle: Bundle, pixels_B3HW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """Mask and latents of the picture without what the mask covers, float32 (conditions_B5hw).

    pixels: in [-1, 1]. mask: 1 where it is painted anew, 0 where the picture stays.
    """
    hard_B1HW = (mask_B1HW > 0.5).float()
    # Grey and not black, as 0 lies in the middle of the pixels' range: what these models were trained with.
    mean_B4hw, _ = encode_moments(bundle, pixels_B3HW * (1.0 - hard_B1HW))
    # The nearest pixel and not a mean, again as in their training: a cell is painted or not.
    return torch.cat([interpolate(hard_B1HW, size=mean_B4hw.shape[2:]).to(mean_B4hw), mean_B4hw], dim=1)


def blank_conditions(bundle: Bundle, num_images: int, width_px: int, height_px: int) -> Tensor:
    """The same where there is no picture: all is painted anew."""
    pixels_13HW = torch.zeros(1, 3, height_px, width_px)
    conditions_15hw = inpaint_conditions(bundle, pixels_13HW, torch.ones(1, 1, height_px, width_px))
    return conditions_15hw.expand(num_images, -1, -1, -1)
