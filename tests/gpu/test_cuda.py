"""What only a CUDA card can show. Run with `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdlora.config import files
from sdlora.training.loop.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_training_on_a_card_passes_the_self_test(
    tiny_sd1: Path, tiny_images: Path, tmp_path: Path, precision: str, quantization: str
) -> None:
    settings = {
        "base_model.model": tiny_sd1,
        "base_model.quantization": quantization,
        "images.folder": tiny_images,
        "images.resolution": 64,
        "adapter.layers": "all+conv",
        "adapter.text_encoder": "true",
        "optimization.steps": 4,
        "optimization.optimizer": "paged_adamw8bit",
        "optimization.precision": precision,
        "optimization.device": "cuda",
        "outputs.folder": tmp_path,
    }
    result = train(files.load(overrides=[f"{name}={value}" for name, value in settings.items()]))
    assert result.adapter.is_file()
