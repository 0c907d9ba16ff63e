"""Bases of rectified flow and CosXL's EDM: trained, previewed, exported, generated with, and what their files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.adapters.files.reading import read
from sdlora.config import files
from sdlora.config.base_model import FamilyName, Prediction
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.generation.generate import generate
from sdlora.training.loop.run import train
from tests.support.tiny_models import build, save_single_file

CASES: dict[str, tuple[FamilyName, Prediction, str]] = {
    "sd1-flow": ("sd1", "flow", "folder"),
    "sdxl-flow": ("sdxl", "flow", "file"),
    "sdxl-edm_v": ("sdxl", "edm_v", "file"),
}


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prediction, Path]:
    family, prediction, layout = CASES[request.param]
    place = tmp_path_factory.mktemp("base")
    folder = build(family, place / request.param, prediction=prediction)
    return prediction, folder if layout == "folder" else save_single_file(folder, place / "model.safetensors")


def config(model: Path, images: Path, out: Path, *settings: str) -> TrainConfig:
    return files.load(
        overrides=[
            f"base_model.model={model}",
            f"images.folder={images}",
            f"outputs.folder={out}",
            "images.resolution=64",
            "images.bucket_step=32",
            "images.cache=false",
            "optimization.steps=2",
            "optimization.precision=fp32",
            "optimization.batch_size=1",
            "adapter.rank=2",
            "name=ink",
            *settings,
        ]
    )


def test_two_steps_with_previews_validation_and_a_picture(
    model: tuple[Prediction, Path], tiny_images: Path, tmp_path: Path
) -> None:
    prediction, source = model
    asked = ("objective.weighting=min_snr", "objective.timestep_distribution=logit_normal")
    result = train(
        config(
            source,
            tiny_images,
            tmp_path,
            *asked,
            "objective.timestep_shift=2.5",
            "validation.fraction=0.4",
            "previews.prompts=[a fox]",
            "previews.steps=2",
        )
    )
    assert result.relative_loss is not None
    file = read(result.adapter)
    assert file.metadata["modelspec.prediction_type"] == prediction
    said = (file.metadata.get("ss_timestep_sampling"), file.metadata.get("ss_discrete_flow_shift"))
    assert said == (("sigmoid", "2.5") if prediction == "flow" else (None, None))
    assert "self-test passed" in (result.folder / "log.txt").read_text(encoding="utf-8")
    request = {
        "base_model": {"model": str(source)}, "prompt": "a fox", "adapters": [str(result.adapter)], "steps": 2,
        "width_px": 64, "height_px": 64, "seed": 1, "compute": {"precision": "fp32"},
    }  # fmt: skip
    (image,) = generate(request)
    assert image.config.sampler == "Euler"  # nobody asked for another, and the usual one has no form for it
    with pytest.raises(ConfigError, match="sampler: Euler a has no form for a model that predicts"):
        list(generate({**request, "sampler": "Euler a"}))


def test_previews_with_a_sampler_that_has_no_form_are_refused_before_anything_is_made(
    model: tuple[Prediction, Path], tiny_images: Path, tmp_path: Path
) -> None:
    _, source = model
    wrong = ("previews.prompts=[a fox --ss DDIM, a cat]", "previews.sampler=LCM")
    with pytest.raises(
        ConfigError, match=r"previews.sampler: LCM has no form(.|\n)*previews.prompts: DDIM has no form"
    ):
        train(config(source, tiny_images, tmp_path, *wrong))
    assert list(tmp_path.iterdir()) == []
