"""The shipped configs of each family's parts, fitted to a file's real widths.

A single-file model has no configs. Topology is the family's; widths are read from the shapes, so that narrower models
of the same topology load too. Head counts can't be seen in shapes: SD 1.x has 8 heads everywhere, the others (and all
CLIP encoders) 64 channels a head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.config.base_model import FamilyName, Prediction

Shapes = Mapping[str, tuple[int, ...]]
ModelConfig = dict[str, Any]

_SHIPPED = Path(__file__).parent / "shipped"
_HEAD_WIDTH = 64


def shipped_configs(family: FamilyName, prediction: Prediction = "epsilon") -> dict[str, ModelConfig]:
    """Configs of unet, vae, text_encoder (text_encoder_2) and scheduler, as diffusers and transformers take them."""
    name = "sd2_v" if family == "sd2" and prediction == "v_prediction" else family
    configs: dict[str, ModelConfig] = json.loads((_SHIPPED / f"{name}.json").read_text(encoding="utf-8"))
    configs["scheduler"]["prediction_type"] = prediction
    return configs


def fit_unet(config: ModelConfig, shapes: Shapes) -> ModelConfig:
    """`config` with the widths of a UNet in original names (`input_blocks.1.0...`)."""
    per_level = config["layers_per_block"] + 1
    widths = [
        # The first resnet of a level stands behind conv_in (block 0) and the levels before, a downsampler each.
        shapes[f"input_blocks.{1 + level * per_level}.0.out_layers.3.weight"][0]
        for level in range(len(config["block_out_channels"]))
    ]
    cross_width = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    fitted = {**config, "block_out_channels": widths, "cross_attention_dim": cross_width}
    fitted["in_channels"] = shapes["input_blocks.0.0.weight"][1]
    if isinstance(config["attention_head_dim"], list):  # diffusers' name for the number of heads
        fitted["attention_head_dim"] = [width // _HEAD_WIDTH for width in widths]
    # Checkpoints of SD 1.x project with 1x1 convolutions, later ones with linear layers; diffusers must know which.
    projection = shapes["input_blocks.4.1.proj_in.weight"]
    fitted["use_linear_projection"] = len(projection) == 2
    if "label_emb.0.0.weight" in shapes:
        fitted["projection_class_embeddings_input_dim"] = shapes["label_emb.0.0.weight"][1]
    return fitted


def fit_vae(config: ModelConfig, shapes: Shapes) -> ModelConfig:
    """`config` with the widths of a VAE in original (`encoder.down.0...`) or diffusers names."""
    widths = []
    for level in range(len(config["block_out_channels"])):
        original = f"encoder.down.{level}.block.0.conv1.weight"
        diffusers = f"encoder.down_blocks.{level}.resnets.0.conv1.weight"
        widths.append(shapes[original if original in shapes else diffusers][0])
    return {**config, "block_out_channels": widths}


def fit_text_encoder(
    config: ModelConfig, width: int, layers: int, intermediate: int, projection: int | None
) -> ModelConfig:
    """`config` with a CLIP text encoder's width, number of layers, width of its MLP and of its projection."""
    return {
        **config,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "projection_dim": projection or config["projection_dim"],
    }
