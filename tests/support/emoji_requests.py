"""Quick requests to the embedded base model, and what comes of them."""

from __future__ import annotations

from typing import Any

import numpy

from sdlora.config.generate import GenerateConfig
from sdlora.generation.generate import Generator
from sdlora.generation.generated import GeneratedImage

MODEL = "builtin:emoji"


FEW = r".*down_blocks_1_attentions_0_.*_attn2_to_(q|k)|.*mid_block_resnets_0_conv1"


KINDS = ("lora", "lora", "loha", "lokr", "dora")


QUICK: dict[str, Any] = {
    "prompt": "a cat face, noto style emoji",
    "width_px": 64,
    "height_px": 64,
    "steps": 3,
    "guidance": 4.0,
    "seed": 11,
    "sampler": "Euler",
    "compute": {"precision": "fp32", "device": "cpu"},
}


def request_of(**settings: Any) -> GenerateConfig:
    return GenerateConfig(**{**QUICK, **settings})


def one(generator: Generator, config: GenerateConfig) -> GeneratedImage:
    (image,) = generator.generate(config)
    return image


def pixels(image: GeneratedImage) -> numpy.ndarray:
    return numpy.asarray(image.image).astype(int)
