"""sd-scripts asks the dataset file before the arguments, and its own defaults last: so does the import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdlora.imports.read import Imported
from tests.support.imported_settings import imported, read_back, told

ARGUMENTS = """
pretrained_model_name_or_path = "b"
network_module = "networks.lora"
network_dim = 8
learning_rate = 1e-4
dataset_config = "ds.toml"
"""
SUBSET = '\n[[datasets.subsets]]\nimage_dir = "x"\n'


def both(tmp_path: Path, arguments: str, dataset: str) -> Imported:
    (tmp_path / "ds.toml").write_text(dataset, encoding="utf-8")
    return imported(tmp_path, "train.toml", ARGUMENTS + arguments)


BUCKETED = [
    '[general]\nenable_bucket = true\n[[datasets]]\nresolution = 640\ncaption_extension = ".cap"\n' + "LIMIT" + SUBSET,
    '[[datasets]]\nresolution = 640\nenable_bucket = true\ncaption_extension = ".cap"\n' + "LIMIT" + SUBSET,
]


@pytest.mark.parametrize("dataset", BUCKETED)
def test_buckets_of_a_dataset_file_stay_on(tmp_path: Path, dataset: str) -> None:
    result = both(tmp_path, "", dataset.replace("LIMIT", "min_bucket_reso = 256"))
    config = result.config
    assert (config.images.buckets, config.images.bucket_min, config.images.resolution) == (True, 256, 640)
    assert config.captions.extension == ".cap"
    assert "min_bucket_reso" not in told(result)
    assert not [one for one in result.assumed if one.startswith(("caption_extension", "enable_bucket"))]
    read_back(result, tmp_path)


def test_what_neither_file_says_is_as_by_default_there(tmp_path: Path) -> None:
    result = both(tmp_path, "", "[[datasets]]\nresolution = 512" + SUBSET)
    assert (result.config.images.buckets, result.config.captions.extension) == (False, ".caption")
    assert {"enable_bucket=False", "caption_extension=.caption", "train_batch_size=1"} <= set(result.assumed)
    both_say = both(tmp_path, "", "[[datasets]]\nresolution = 512\nbatch_size = 3" + SUBSET)
    assert not [one for one in both_say.assumed if "batch_size" in one]
    assert both_say.config.optimization.batch_size == 3


def test_arguments_stand_in_for_what_the_dataset_file_leaves_out(tmp_path: Path) -> None:
    arguments = "enable_bucket = true\nflip_aug = true\nresolution = 768\nbucket_reso_steps = 32\ncolor_aug = true\n"
    config = both(tmp_path, arguments, "[[datasets]]" + SUBSET).config
    assert (config.images.buckets, config.images.horizontal_flip, config.images.resolution) == (True, True, 768)
    assert (config.images.bucket_step, config.images.hue_jitter) == (32, 16)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("flip_aug", lambda config: config.images.horizontal_flip),
        ("shuffle_caption", lambda config: config.captions.shuffle_tags),
        ("alpha_mask", lambda config: config.images.mask != "none"),
        ("color_aug", lambda config: config.images.hue_jitter > 0),
    ],
)
def test_off_in_the_dataset_file_is_off(tmp_path: Path, name: str, read: Any) -> None:
    assert not read(
        both(tmp_path, f"{name} = true\n", f"[[datasets]]\nresolution = 512\n{name} = false" + SUBSET).config
    )
    assert read(both(tmp_path, f"{name} = false\n", f"[[datasets]]\nresolution = 512\n{name} = true" + SUBSET).config)


def test_masks_of_a_dataset_file_are_those_of_masked_loss(tmp_path: Path) -> None:
    result = both(tmp_path, "masked_loss = true\n", "[[datasets]]\nresolution = 512\nalpha_mask = true" + SUBSET)
    assert result.config.images.mask == "alpha"
    assert "masked_loss" not in told(result)


def test_the_window_with_a_dataset_file_does_so_too(tmp_path: Path) -> None:
    (tmp_path / "ds.toml").write_text("[[datasets]]\nresolution = 640\nenable_bucket = true\n" + SUBSET)
    window = {
        "pretrained_model_name_or_path": "b", "LoRA_type": "Standard", "network_dim": 8, "enable_bucket": False,
        "dataset_config": "ds.toml", "max_resolution": "512,512", "train_batch_size": 2,
    }  # fmt: skip
    config = imported(tmp_path, "window.json", json.loads(json.dumps(window))).config
    assert (config.images.buckets, config.images.resolution, config.optimization.batch_size) == (True, 640, 2)


def test_a_dataset_file_alone_says_what_is_as_by_default_there(tmp_path: Path) -> None:
    result = imported(tmp_path, "dataset.toml", "[[datasets]]\nresolution = 640\nenable_bucket = true\n" + SUBSET)
    assert result.assumed == ("caption_extension=.caption",)


@pytest.mark.parametrize("subsets", [SUBSET, SUBSET + "num_repeats = 2" + SUBSET.replace('"x"', '"y"')])
def test_folders_of_the_arguments_are_left_out_beside_a_dataset_file(tmp_path: Path, subsets: str) -> None:
    arguments = 'train_data_dir = "old"\nreg_data_dir = "people"\n'
    result = both(tmp_path, arguments, "[[datasets]]\nresolution = 512" + subsets)
    assert Path("old") not in (result.config.images.folder, *(one.folder for one in result.config.images.folders))
    assert result.config.images.class_folder is None
    for name in ("train_data_dir=old", "reg_data_dir=people"):
        assert f"{name}: left out, as there: the dataset file names the folders" in told(result)
