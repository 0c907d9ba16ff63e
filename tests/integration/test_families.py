"""Every family, from one file, and one from a folder: train with convolution and text-encoder LoRA, export, self-test.

Either layout gives every family the same weights to the last bit (test_loading.py), so one is enough for each.

Widths are tiny by default. `pytest tests/integration/test_families.py --width true -s` takes SD 1.5 and SD 2.1 at their
true width (about 4 GB of disk in a temporary folder and 12 GiB of memory).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdlora.adapters.files.reading import read
from sdlora.config import files
from sdlora.config.base_model import FamilyName, Prediction
from sdlora.events import Event, Notice
from sdlora.training.loop.run import train
from tests.support.tiny_models import Width, build, save_single_file

MODELS: dict[str, tuple[FamilyName, Prediction, str]] = {
    "sd1": ("sd1", "epsilon", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
    "sd2": ("sd2", "v_prediction", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
    "sdxl": ("sdxl", "epsilon", "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"),
}
CONVOLUTIONS = {
    "sd1": "lora_unet_down_blocks_0_resnets_0_conv1",
    "sd2": "lora_unet_down_blocks_0_resnets_0_conv1",
    "sdxl": "lora_unet_input_blocks_1_0_in_layers_2",
}


class Notices:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.messages.append(event.message)

    def close(self) -> None:
        pass


def model(family: str, width: Width, folder: Path) -> Path:
    """A random model of a family as a folder."""
    family_name, prediction, _ = MODELS[family]
    # SDXL at true width has 2.6 billion weights in its UNet: too much for this machine in fp32.
    own_width: Width = "tiny" if family == "sdxl" else width
    dtype = torch.bfloat16 if own_width == "true" else torch.float32
    return build(family_name, folder, width=own_width, dtype=dtype, prediction=prediction)


@pytest.mark.parametrize(("family", "layout"), [("sd1", "folder"), ("sd1", "file"), ("sd2", "file"), ("sdxl", "file")])
def test_two_steps_export_and_self_test(
    request: pytest.FixtureRequest, family: str, layout: str, tiny_images: Path, tmp_path: Path
) -> None:
    source = model(family, request.config.getoption("--width"), tmp_path / family)
    if layout == "file":
        prediction = "v" if MODELS[family][1] == "v_prediction" else "epsilon"
        source = save_single_file(
            source, tmp_path / "model.safetensors", metadata={"modelspec.prediction_type": prediction}
        )
    notices = Notices()
    settings = {
        "base_model.model": source,
        "images.folder": tiny_images,
        "images.resolution": 64,
        "images.bucket_step": 32,
        "adapter.rank": 4,
        "adapter.layers": "all+conv",
        "adapter.text_encoder": "true",
        "optimization.steps": 2,
        "optimization.learning_rate": "1e-3",
        "optimization.precision": "bf16",
        "outputs.folder": tmp_path,
    }
    result = train(files.load(overrides=[f"{name}={value}" for name, value in settings.items()]), [notices])
    adapter = read(result.adapter)
    assert adapter.family == family
    assert adapter.unused == ()
    assert {MODELS[family][2], CONVOLUTIONS[family]} <= adapter.modules.keys()
    report = [message for message in notices.messages if message.startswith("self-test passed")]
    print(f"{family} {layout}: {len(adapter.modules)} layers; {report[0]}")
    assert f"{len(adapter.modules)} layers read back within" in report[0]
    assert "prediction through diffusers" in report[0]
    assert any(MODELS[family][1] in message for message in notices.messages)
