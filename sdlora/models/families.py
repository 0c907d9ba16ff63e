"""The families of Stable Diffusion there are."""

from __future__ import annotations

from sdlora.config.base_model import FamilyName
from sdlora.models.bundle import Family
from sdlora.models.sd1 import SD1, SD2
from sdlora.models.sdxl import SDXL

FAMILIES: dict[FamilyName, Family] = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
