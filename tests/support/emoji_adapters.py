"""Random adapters that fit builtin:emoji, made in milliseconds without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
from safetensors.numpy import save_file

from sdlora.models.builtin import BUILTIN_MODELS
from sdlora.models.headers import read_header

_PARTS = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def random_adapter(
    path: Path,
    seed: int = 0,
    *,
    rank: int = 2,
    strength: float = 0.3,
    trigger: str = "",
    text_encoder: bool = True,
    **more: str,
) -> Path:
    """A kohya file over the attention of the UNet and, if wanted, the text encoder, with trigger words if given.

    more: metadata that is added, or takes the place of its own.
    """
    generator = numpy.random.default_rng(seed)
    tensors: dict[str, numpy.ndarray] = {}
    for part, prefix in _PARTS.items():
        if part == "text_encoder" and not text_encoder:
            continue
        for name, shape in _attention(part).items():
            plain = name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"
            layer = prefix + plain.removesuffix(".weight").replace(".", "_")
            down = generator.normal(size=(rank, shape[1])) / shape[1] ** 0.5
            up = generator.normal(size=(shape[0], rank)) * strength
            tensors[f"{layer}.lora_down.weight"] = down.astype(numpy.float32)
            tensors[f"{layer}.lora_up.weight"] = up.astype(numpy.float32)
            tensors[f"{layer}.alpha"] = numpy.array(rank, numpy.float32)
    metadata = {"ss_base_model_version": "sd_v1", "ss_output_name": path.stem}
    if trigger:
        metadata |= {
            "modelspec.trigger_phrase": trigger,
            "ss_tag_frequency": json.dumps({"images": {trigger: 4, "flat": 2}}),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {**metadata, **more})
    return path


def _attention(part: str) -> dict[str, tuple[int, ...]]:
    folder = BUILTIN_MODELS["builtin:emoji"] / part
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= read_header(file).shapes
    ends = (".to_q.weight", ".to_v.weight", ".q_proj.weight", ".v_proj.weight")
    return {name: shape for name, shape in shapes.items() if name.endswith(ends)}
