"""A base model's parts without weights, to ask before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sdlora.config.base_model import BaseModelConfig
from sdlora.models.detection import detect
from sdlora.models.layout import text_encoder_layouts, unet_layout


def test_a_layout_is_made_once_until_the_model_s_own_config_is_another(shallow_sd1: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shallow_sd1, tmp_path / "base")
    base = BaseModelConfig(model=str(folder))
    detection = detect(base)
    unet, encoders = unet_layout(base, detection), text_encoder_layouts(base, detection)
    assert unet is unet_layout(base, detection)
    assert encoders == text_encoder_layouts(base, detection)
    assert {parameter.device.type for parameter in unet.parameters()} == {"meta"}

    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"layers_per_block": 1}), encoding="utf-8")
    assert len(unet_layout(base, detection).down_blocks[0].resnets) == 1
