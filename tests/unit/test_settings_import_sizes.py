"""Odd sizes are rounded and said by the name of the file, and what other trainers have by default is not said."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sdlora.imports.read import Imported
from tests.support.foreign_settings import AI_TOOLKIT, ONETRAINER
from tests.support.imported_settings import imported, read_back, told
from tests.support.kohya_presets import PLAIN

SIMPLETUNER: dict[str, Any] = {
    "model_family": "sdxl", "pretrained_model_name_or_path": "a/b", "learning_rate": 1e-4,
    "data_backend_config": "data.json",
}  # fmt: skip


def simpletuner(tmp_path: Path, changes: dict[str, Any], backend: dict[str, Any] | None = None) -> Imported:
    backends = [{"id": "x", "instance_data_dir": "x", "caption_strategy": "textfile", **(backend or {})}]
    (tmp_path / "data.json").write_text(json.dumps(backends), encoding="utf-8")
    return imported(tmp_path, "config.json", {**SIMPLETUNER, **changes})


def ai_toolkit(tmp_path: Path, section: str, changes: dict[str, Any]) -> Imported:
    job: dict[str, Any] = copy.deepcopy(AI_TOOLKIT)
    part = job["config"]["process"][0][section]
    (part[0] if isinstance(part, list) else part).update(changes)
    return imported(tmp_path, "job.yaml", job)


def test_betas_of_simpletuners_options_are_a_pair(tmp_path: Path) -> None:
    result = simpletuner(tmp_path, {"optimizer_config": "beta1=0.85,beta2=0.97,eps=1e-7"})
    assert result.config.optimization.optimizer_options == {"betas": [0.85, 0.97], "eps": 1e-7}
    result = simpletuner(tmp_path, {"optimizer_config": "beta2=0.97"})
    assert result.config.optimization.optimizer_options == {"betas": [0.9, 0.97]}
    read_back(result, tmp_path)


@pytest.mark.parametrize("name", ["maximum_image_size", "target_downsample_size"])
def test_limits_of_sizes_of_simpletuner_are_said(tmp_path: Path, name: str) -> None:
    assert f"{name}=4: no counterpart" in told(simpletuner(tmp_path, {name: 4}))
    assert f"{name}=4: no counterpart" in told(simpletuner(tmp_path, {}, {name: 4}))


def test_a_resolution_that_no_picture_has_is_said_by_its_name(tmp_path: Path) -> None:
    said = "resolution=0.5: in pixels, as resolution_type=pixel, no edge here; set images.resolution"
    tiny = {"resolution": 0.5, "resolution_type": "pixel"}
    assert said in told(simpletuner(tmp_path, tiny))
    assert said in told(simpletuner(tmp_path, {}, tiny))


def test_odd_sizes_of_simpletuner_are_rounded_and_said(tmp_path: Path) -> None:
    odd = {"resolution": 1027, "resolution_type": "pixel"}
    for result in (simpletuner(tmp_path, odd), simpletuner(tmp_path, {}, odd)):
        assert result.config.images.resolution == 1024
        assert "resolution=1027: a multiple of 8 is needed: 1024" in told(result)
    assert "resolution" not in told(simpletuner(tmp_path, {}, {"resolution": 1.0, "resolution_type": "area"}))


@pytest.mark.parametrize(
    ("changes", "field", "ours"),
    [
        ({"validation_resolution": "1027x770"}, "previews.width_px", 1024),
        ({"aspect_bucket_alignment": 30}, "images.bucket_step", 32),
    ],
)
def test_other_odd_sizes_of_simpletuner_are_rounded_and_said(
    tmp_path: Path, changes: dict[str, Any], field: str, ours: int
) -> None:
    result = simpletuner(tmp_path, changes)
    section, name = field.split(".")
    assert getattr(getattr(result.config, section), name) == ours
    (foreign,) = changes
    assert f"{foreign}={changes[foreign]}: a multiple of 8" in told(result)


@pytest.mark.parametrize(
    ("resolution", "ours"), [(1027, 1024), ([1027], 1024), ([510, 1027], (512, 1024)), ([512, 511], 512), (32, 64)]
)
def test_odd_sizes_of_ai_toolkit_are_rounded_and_said(tmp_path: Path, resolution: Any, ours: Any) -> None:
    result = ai_toolkit(tmp_path, "datasets", {"resolution": resolution})
    assert result.config.images.resolution == ours
    assert "datasets.resolution=" in told(result)
    result = ai_toolkit(tmp_path, "sample", {"width": 1027, "height": 770})
    assert (result.config.previews.width_px, result.config.previews.height_px) == (1024, 768)
    assert "sample.width=1027: a multiple of 8" in told(result)
    assert "sample.width" not in told(ai_toolkit(tmp_path, "sample", {}))


def test_odd_sizes_of_onetrainer_are_rounded_and_said(tmp_path: Path) -> None:
    plain = {**ONETRAINER, "concept_file_name": "", "resolution": "1027"}
    result = imported(tmp_path, "mine.json", plain)
    assert result.config.images.resolution == 1024
    assert "resolution=1027: a multiple of 8, at least 64, is needed: 1024" in told(result)
    own = {"path": "x", "image": {"enable_resolution_override": True, "resolution_override": "510,770"}}
    result = imported(tmp_path, "mine.json", {**plain, "concepts": [own]})
    assert result.config.images.resolution == (512, 768)
    assert "image.resolution_override=510,770: a multiple of 8" in told(result)


def test_what_ai_toolkit_has_on_by_default_is_said_when_it_is_off(tmp_path: Path) -> None:
    said = told(ai_toolkit(tmp_path, "model", {"use_text_encoder_1": False, "use_text_encoder_2": True}))
    assert "model.use_text_encoder_1=False: both text encoders of a base are always used here" in said
    assert "use_text_encoder_2" not in said


def test_defaults_of_ai_toolkit_are_not_said(tmp_path: Path) -> None:
    train = {"img_multiplier": 1.0, "latent_multiplier": "1.0", "noise_multiplier": 1, "num_train_timesteps": 1000}
    assert "multiplier" not in told(ai_toolkit(tmp_path, "train", train))
    assert "train.img_multiplier=0.9: no counterpart" in told(ai_toolkit(tmp_path, "train", {"img_multiplier": 0.9}))
    assert "datasets.scale" not in told(ai_toolkit(tmp_path, "datasets", {"scale": 1.0}))


def test_what_is_written_out_as_off_is_off(tmp_path: Path) -> None:
    text = 'network_module = "lycoris.kohya"\nnetwork_dim = 8\nlearning_rate = 1e-4\ntrain_data_dir = "x"\n'
    result = imported(tmp_path, "a.toml", text + 'network_args = ["train_norm=False", "use_scalar=True"]\n')
    assert "train_norm" not in told(result)
    assert "use_scalar=True: no counterpart" in told(result)


def test_what_no_picture_has_is_said_by_kohyas_name_too(tmp_path: Path) -> None:
    result = imported(tmp_path, "preset.json", {**PLAIN, "max_resolution": "32,32"})
    assert "max_resolution=32,32: no picture is below 64 px here" in told(result)


def test_half_a_size_of_a_preview_of_simpletuner_refuses_nothing(tmp_path: Path) -> None:
    assert simpletuner(tmp_path, {"validation_resolution": "1024xwide"}).config.previews.width_px == 1024
