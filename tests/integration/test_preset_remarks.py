"""What presets say of themselves: tried as they are, none gives a remark that its own settings are the cause of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sdlora.adapters.live.attach import attach
from sdlora.config import files
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from sdlora.models.loading import load
from sdlora.training.preflight.summary import summarise

FAMILIES = {
    "sd2_style": "sd2",
    **dict.fromkeys(("pony", "illustrious", "noobai", "noobai_vpred", "animagine4"), "sdxl"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many as a character or a style has: sixty-four."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(64):
        Image.new("RGB", (1024, 1024), (3 * index, 90, 255 - 3 * index)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a plain card, ohwx, number {index}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("preset", [path.stem for path in files.shipped_presets()])
def test_a_preset_has_no_remarks_on_itself(
    preset: str, pictures: Path, shallow_sd1: Path, tiny_sd2: Path, tiny_sdxl: Path
) -> None:
    bases = {"sd1": shallow_sd1, "sd2": tiny_sd2, "sdxl": tiny_sdxl}
    base = bases[FAMILIES.get(preset, "sdxl" if preset.startswith("sdxl") else "sd1")]
    settings = [f"base_model.model={base}", f"images.folder={pictures}"]
    config = files.load(preset, settings)
    if config.captions.trigger is None and config.objective.prior_preservation != "none":
        settings.append("captions.trigger=ohwx")
    if preset == "demo":  # its base is 128 px, and its prompts are for its own pictures
        settings = []
    remarks = [text for label, text in summarise(files.load(preset, settings)).lines() if label in ("note", "advice")]
    assert remarks == []
    # Tried small, a preset says no more than that it is small.
    small = summarise(files.load(preset, [*settings, "images.resolution=64"]))
    remarks = [text for label, text in small.lines() if label in ("note", "advice")]
    assert all(text.startswith("images.resolution=64") for text in remarks), remarks


@pytest.mark.parametrize(("family", "clip_skip"), [("sd1", 2), ("sd1", 3), ("sd2", 1), ("sdxl", 1)])
def test_layers_that_the_text_does_not_come_from_get_no_adapter(
    family: str, clip_skip: int, shallow_sd1: Path, tiny_sd2: Path, tiny_sdxl: Path
) -> None:
    base = {"sd1": shallow_sd1, "sd2": tiny_sd2, "sdxl": tiny_sdxl}[family]
    bundle = load(BaseModelConfig(model=str(base), precision="fp32", clip_skip=clip_skip))
    adapter = attach(bundle, AdapterConfig(rank=2, layers="attention", text_encoder=True))
    for parameter in adapter.parameters:  # off 0, where A has no gradient
        parameter.data.add_(0.01)
    states = bundle.family.encode_text(bundle, ["a fox"])
    latents_BCHW = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    bundle.family.predict(bundle, latents_BCHW, torch.tensor([500]), states).square().mean().backward()
    assert [name for name in adapter.dead_modules() if name.startswith("text_encoder")] == []
    left_out = [note for note in adapter.notes if note.startswith("no adapter on text_encoder.encoder.layers.")]
    assert len(left_out) == (1 if family == "sdxl" or clip_skip > 1 else 0)
