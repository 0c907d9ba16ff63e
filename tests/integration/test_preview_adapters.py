"""previews.adapters: a run's previews are the pictures that its adapter gives beside those files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.config import files
from sdlora.errors import ConfigError
from sdlora.generation.generate import Generator
from sdlora.training.loop.run import train
from sdlora.training.preflight.summary import summarise
from tests.support.adapter_files import EVERYTHING, random_adapter

STYLE, WEIGHT = "style.safetensors", 0.6
PROMPT = "shape 3, white"


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def config_of(model: Path, images: Path, folder: Path, *more: str) -> files.TrainConfig:
    settings = [
        f"base_model.model={model}", f"images.folder={images}", "images.resolution=64", "adapter.rank=2",
        "adapter.layers=all+conv", "adapter.text_encoder=true", "optimization.steps=2",
        "optimization.learning_rate=1e-2", "previews.guidance=1",
        f"previews.prompts=[{PROMPT!r}]", "previews.steps=3", "optimization.device=cpu", "outputs.self_test=false",
        f"outputs.folder={folder}",
    ]  # fmt: skip
    return files.load(overrides=[*settings, *more])


@pytest.mark.parametrize(
    "settings",
    [
        ("optimization.precision=fp32",),
        ("optimization.precision=fp32", "adapter.dora=true"),
        ("optimization.precision=bf16", "optimization.speed=fast"),
        ("optimization.precision=fp32", "base_model.quantization=int8"),
    ],
    ids=["plain", "dora", "fast", "int8"],
)
def test_previews_are_what_both_adapters_give(
    settings: tuple[str, ...], shallow_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    style = random_adapter(shallow_sd1, tmp_path / STYLE, layers=EVERYTHING)
    config = config_of(
        shallow_sd1, tiny_images, tmp_path / "runs", *settings, f"previews.adapters=['{style}:{WEIGHT}']"
    )
    result = train(config)
    found = pixels(Image.open(result.folder / "previews" / "step_000002" / "00.png"))

    def generated(*adapters: str) -> np.ndarray:
        base = {**config.base_model.model_dump(), "precision": config.resolved_base_model.precision}
        request = {
            "prompt": PROMPT, "width_px": 64, "height_px": 64, "steps": 3, "seed": 0, "guidance": 1.0,
            "sampler": "DPM++ 2M", "base_model": base, "adapters": adapters, "compute": {"merge_adapters": False},
        }  # fmt: skip
        return pixels(next(Generator(base).generate(request)).image)

    together = np.abs(found - generated(str(result.adapter), f"{style}:{WEIGHT}")).mean()
    alone = np.abs(found - generated(str(result.adapter))).mean()
    print(f"{settings}: {together:.3f} from both, {alone:.3f} from the trained one alone")
    assert together < 0.3 * alone  # bf16 rounds otherwise under autocast; in fp32 it is a hundredth


def test_a_file_that_cant_be_used_is_refused_before_a_model_is_loaded(
    shallow_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    (tmp_path / STYLE).write_bytes(b"no adapter")
    for file, words in ((tmp_path / STYLE, "style.safetensors"), (tmp_path / "gone.safetensors", "no such file")):
        with pytest.raises(ConfigError, match=rf"(?s)previews\.adapters.*{words}"):
            summarise(config_of(shallow_sd1, tiny_images, tmp_path, f"previews.adapters=['{file}']"))


def test_the_dry_run_names_them(shallow_sd1: Path, tiny_images: Path, tmp_path: Path) -> None:
    style = random_adapter(shallow_sd1, tmp_path / STYLE)
    config = config_of(shallow_sd1, tiny_images, tmp_path / "runs", f"previews.adapters=['{style}:{WEIGHT}']")
    assert dict(summarise(config).lines())["previews"] == f"{PROMPT}; with {STYLE} at 0.6"
