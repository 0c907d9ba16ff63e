"""SDXL's size conditions. Loads no torch."""

from __future__ import annotations

from typing import NamedTuple


class SizeConditions(NamedTuple):
    """What SDXL is told about an image's size and crop, in pixels, in the order that its UNet expects.

    (Podell et al. 2023, section 2.2.) Other families ignore it.
    """

    original_height: int
    original_width: int
    crop_top: int
    crop_left: int
    target_height: int
    target_width: int
