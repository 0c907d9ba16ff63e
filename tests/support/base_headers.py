"""Base models without weights, for what headers and configs tell: files that are holes on the disk, folders of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

UNET = "model.diffusion_model."
SD1 = {
    **{f"{UNET}input_blocks.{index}.0.weight": (8,) for index in range(1, 12)},
    f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{UNET}input_blocks.7.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
}
SD2 = {
    **{name: shape for name, shape in SD1.items() if name.startswith((UNET, "first_stage_model."))},
    f"{UNET}input_blocks.7.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1024),
    "cond_stage_model.model.ln_final.weight": (1024,),
}
SDXL = {
    **{f"{UNET}input_blocks.{index}.0.weight": (8,) for index in range(1, 9)},
    **{f"{UNET}input_blocks.7.1.transformer_blocks.{index}.attn2.to_k.weight": (1280, 2048) for index in range(10)},
    f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{UNET}label_emb.0.0.weight": (1280, 2816),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}


def safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> Path:
    """A file with these names and shapes; its weights are a hole on the disk."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    return path


def folder(path: Path, unet: Mapping[str, object], index: Mapping[str, object], **scheduler: object) -> Path:
    """A diffusers folder with configs alone."""
    (path / "unet").mkdir(parents=True)
    (path / "scheduler").mkdir()
    (path / "unet" / "config.json").write_text(json.dumps(unet))
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (path / "model_index.json").write_text(json.dumps(parts | dict(index)))
    return path


SD1_UNET = {"block_out_channels": [64, 96, 128, 160], "cross_attention_dim": 192, "sample_size": 16}
SDXL_UNET = {"block_out_channels": [320, 640, 1280], "addition_embed_type": "text_time", "sample_size": 128}
TWO_ENCODERS = {"text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "CLIP"]}
