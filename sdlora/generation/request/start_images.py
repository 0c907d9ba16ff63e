"""The picture that generation starts from, and the mask of what is generated anew.

Shapes: C channels, H and W height and width in pixels; h and w of latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as functional
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from sdlora.config.generate import StartImageConfig
from sdlora.constants import LATENT_FACTOR
from sdlora.data.decoding import UnreadableImageError, load_grey, load_rgb, open_image, oriented_size

_SMALLEST_PX = 64
_BACKGROUND = "#ffffff"
# Two per cent: a mask that was resized by another tool may be off by the rounding of an edge.
_SAME_SHAPE = 0.02


@dataclass(frozen=True)
class StartImage:
    """A start image in the size that is generated. `mask`: mode L, soft, white where it is generated anew."""

    image: Image.Image
    mask: Image.Image | None
    hard_mask: Image.Image | None

    def pixels(self) -> Tensor:
        """The image in [-1, 1], as pixels_1CHW."""
        values = torch.from_numpy(numpy.array(self.image)).float() / 127.5 - 1
        return values.permute(2, 0, 1)[None]

    def hard_pixels(self) -> Tensor:
        """mask_11HW: 1 for pixels that may be generated anew."""
        assert self.hard_mask is not None
        return torch.from_numpy(numpy.array(self.hard_mask)).float()[None, None] / 255

    def latent_mask(self) -> Tensor | None:
        """mask_11hw: 1 for latent cells that are generated anew: those of which any pixel is."""
        if self.hard_mask is None:
            return None
        values = torch.from_numpy(numpy.array(self.hard_mask)).float()[None, None] / 255
        # A cell of which only a part was kept would hold old and new at once, which 8x8 pixels can't.
        return functional.max_pool2d((values > 0.5).float(), LATENT_FACTOR)

    def outside_kept(self, generated: Image.Image) -> Image.Image:
        """The generated image with the start image's own pixels outside the mask."""
        if self.mask is None:
            return generated
        mask = self.mask.resize(generated.size, Image.Resampling.BICUBIC)
        kept = (
            self.image.resize(generated.size, Image.Resampling.LANCZOS)
            if generated.size != self.image.size
            else self.image
        )
        return Image.composite(generated, kept, mask)


def load_start(config: StartImageConfig, width_px: int, height_px: int) -> StartImage | None:
    """The start image cut to the wanted shape and resized, or None. Raises UnreadableImageError."""
    if config.image is None:
        return None
    size = (width_px, height_px)
    image = ImageOps.fit(load_rgb(config.image.expanduser(), _BACKGROUND), size, Image.Resampling.LANCZOS)
    if config.mask is None:
        return StartImage(image, None, None)
    hard = ImageOps.fit(load_grey(config.mask.expanduser()), size, Image.Resampling.BICUBIC)
    hard = hard.point(lambda value: 255 if value > 127 else 0)
    soft = hard.filter(ImageFilter.GaussianBlur(config.mask_blur_px)) if config.mask_blur_px else hard
    # what is softened away must have been generated: the hard mask covers every pixel the soft one touches
    return StartImage(image, soft, soft.point(lambda value: 255 if value > 0 else 0))


def start_problems(config: StartImageConfig) -> list[str]:
    """What is wrong with the files, from their headers alone."""
    problems: list[str] = []
    sizes = {}
    for name, path in (("image", config.image), ("mask", config.mask)):
        if path is None:
            continue
        try:
            with open_image(path.expanduser()) as image:
                sizes[name] = oriented_size(image)
        except (UnreadableImageError, OSError) as error:
            problems.append(f"start.{name}: {path}: {error}")
    if len(sizes) == 2:
        (width, height), (mask_width, mask_height) = sizes["image"], sizes["mask"]
        if abs(width / height - mask_width / mask_height) > _SAME_SHAPE * width / height:
            problems.append(
                f"start.mask: {mask_width}x{mask_height} px has another shape than the image, {width}x{height} px"
            )
    return problems


def fitting_size(config: StartImageConfig, edge_px: int) -> tuple[int, int]:
    """Width and height in the start image's shape (a square without one), about `edge_px` squared in all."""
    if config.image is None:
        return edge_px, edge_px
    with open_image(config.image.expanduser()) as image:
        width, height = oriented_size(image)
    # By area, as the model was trained on images of one area in all shapes.
    factor = edge_px / (width * height) ** 0.5
    width_px, height_px = (round(side * factor / LATENT_FACTOR) * LATENT_FACTOR for side in (width, height))
    return max(_SMALLEST_PX, width_px), max(_SMALLEST_PX, height_px)
