"""The golden key lists through diffusers' own kohya converter: every name arrives at the module it is meant for."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft

from sdlora.adapters.files.kohya import module_path
from sdlora.config.base_model import FamilyName

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("family", get_args(FamilyName))
def test_diffusers_maps_every_golden_name_to_our_path(family: FamilyName) -> None:
    names = gzip.decompress((DATA / f"kohya_names_{family}.txt.gz").read_bytes()).decode().split()
    state = {f"{name}.{factor}.weight": torch.zeros(1, 1) for name in names for factor in ("lora_down", "lora_up")}
    state |= {f"{name}.alpha": torch.tensor(1.0) for name in names}
    if family == "sdxl":
        state = _maybe_map_sgm_blocks_to_diffusers(state, SimpleNamespace(layers_per_block=2))
    converted, _ = _convert_non_diffusers_lora_to_diffusers(state)
    unet = {key: value for key, value in converted.items() if key.startswith("unet.")}
    texts = {key: value for key, value in converted.items() if not key.startswith("unet.")}
    arrived = {*convert_unet_state_dict_to_peft(unet), *convert_state_dict_to_diffusers(texts)}
    places = [module_path(name, family) for name in names]
    assert None not in places
    expected = {f"{part}.{path}" for part, path in filter(None, places)}
    assert {key.split(".lora")[0] for key in arrived} == expected
