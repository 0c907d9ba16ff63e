"""What a name in an adapter file can mean: also layers that only reshaped models have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdlora.adapters.files.kohya import kohya_name
from sdlora.adapters.files.layer_table import layers, possible_layers
from sdlora.config.base_model import FamilyName
from sdlora.models.builtin import BUILTIN_MODELS

BLOCKS = {"down_block_types": ("CrossAttnDownBlock2D",) * 3, "up_block_types": ("CrossAttnUpBlock2D",) * 3}
RESHAPED: dict[str, tuple[FamilyName, dict[str, Any]]] = {
    "BK-SDM-Tiny": (
        "sd1",
        {
            **BLOCKS,
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 768,
            "layers_per_block": 1,
            "mid_block_type": None,
        },
    ),
    "SDXL with attention at every level": (
        "sdxl",
        {
            **BLOCKS,
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "transformer_layers_per_block": (1, 2, 4),
        },
    ),
    "the embedded base": ("sd1", UNet2DConditionModel.load_config(BUILTIN_MODELS["builtin:emoji"] / "unet")),
}


@pytest.mark.parametrize("model", RESHAPED)
def test_every_layer_of_a_reshaped_model_has_a_meaning(model: str) -> None:
    family, config = RESHAPED[model]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
    names = [kohya_name("unet", path, family) for path, layer in unet.named_modules() if isinstance(layer, kinds)]
    assert len(names) > 100
    assert [name for name in names if name not in possible_layers(family)] == []
    assert any(name not in layers(family) for name in names), "the published model has all of these: nothing is proven"


@pytest.mark.parametrize(
    "flat", ["down_blocks_4_resnets_0_conv1", "down_blocks_0_resnets_9_conv1", "down_blocks_0_resnets_0_conv3"]
)
def test_a_name_of_no_block_stays_unknown(flat: str) -> None:
    assert f"lora_unet_{flat}" not in possible_layers("sd1")
