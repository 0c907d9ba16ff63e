"""Folders of other trainers: how often their images are seen, at which sizes and in which buckets."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from sdlora.errors import ConfigError
from tests.support.foreign_settings import AI_TOOLKIT
from tests.support.imported_settings import imported, lost_names, read_back, told

NAMED = "pictures/10_hero"


def dataset(subset: str) -> str:
    return f"[[datasets]]\nresolution = 512\n[[datasets.subsets]]\n{subset}\n"


def ai_toolkit_job(folder: dict[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = copy.deepcopy(AI_TOOLKIT)
    job["config"]["process"][0]["datasets"] = [folder]
    return job


@pytest.mark.parametrize(
    ("name", "content", "repeats"),
    [
        ("a.toml", dataset(f'image_dir = "{NAMED}"'), 1),
        ("a.toml", dataset(f'image_dir = "{NAMED}"\nnum_repeats = 1'), 1),
        ("a.toml", dataset(f'image_dir = "{NAMED}"\nnum_repeats = 4'), 4),
        ("a.toml", dataset('image_dir = "C:\\\\pictures\\\\10_hero"'), 1),
        ("job.yaml", ai_toolkit_job({"folder_path": NAMED}), 1),
        ("job.yaml", ai_toolkit_job({"folder_path": NAMED, "num_repeats": 4}), 4),
        ("concepts.json", [{"path": NAMED}], 1),
        ("concepts.json", [{"path": NAMED, "balancing": 4.0}], 4),
        ("concepts.json", [{"path": NAMED, "balancing": 20, "balancing_strategy": "SAMPLES"}], 1),
        ("backends.json", [{"instance_data_dir": NAMED, "caption_strategy": "textfile"}], 1),
        ("backends.json", [{"instance_data_dir": NAMED, "caption_strategy": "textfile", "repeats": 3}], 4),
    ],
)
def test_a_folders_name_does_not_overrule_the_repeats_of_its_trainer(
    tmp_path: Path, name: str, content: object, repeats: int
) -> None:
    result = imported(tmp_path, name, content)
    (folder,) = result.config.images.sources
    assert folder.repeats == repeats
    read_back(result, tmp_path)


def test_captions_of_a_named_folder_leave_its_images_at_once(tmp_path: Path) -> None:
    (tmp_path / "10_hero").mkdir()
    result = imported(tmp_path / "10_hero", "meta.json", {"a.png": {"caption": "a cat"}})
    assert [folder.repeats for folder in result.config.images.sources] == [1]


def test_names_of_folders_below_do_not_count_either(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "poses" / "10_hero").mkdir(parents=True)
    (tmp_path / "plain" / "2024_holiday").mkdir(parents=True)
    named = imported(tmp_path, "a.toml", dataset(f"image_dir = '{tmp_path / 'pictures'}'"))
    assert [folder.repeats for folder in named.config.images.folders] == [1]
    plain = imported(tmp_path, "b.toml", dataset(f"image_dir = '{tmp_path / 'plain'}'"))
    assert plain.config.images.folder == tmp_path / "plain", "four digits are no repeats here"


def test_repeats_that_hold_for_all_stand_in_each_named_folder(tmp_path: Path) -> None:
    subsets = [f'[[datasets.subsets]]\nimage_dir = "{name}"\nnum_repeats = 3\n' for name in ("10_hero", "friend")]
    images = imported(tmp_path, "a.toml", "[[datasets]]\n" + "".join(subsets)).config.images
    assert [folder.repeats for folder in images.folders] == [3, 3]


def test_a_named_class_folder_says_its_repeats(tmp_path: Path) -> None:
    subsets = '[[datasets.subsets]]\nimage_dir = "hero"\n[[datasets.subsets]]\nimage_dir = "5_man"\nis_reg = true\n'
    images = imported(tmp_path, "a.toml", "[[datasets]]\n" + subsets).config.images
    assert [(str(folder.folder), folder.repeats, folder.is_class) for folder in images.folders] == [
        ("hero", 1, False), ("5_man", 1, True),
    ]  # fmt: skip


def test_folders_of_kohya_ss_keep_the_repeats_of_their_names(tmp_path: Path) -> None:
    result = imported(tmp_path, "preset.json", {"train_data_dir": NAMED, "LoRA_type": "Standard"})
    assert (str(result.config.images.folder), result.config.images.folders) == (NAMED, ())


def test_a_subset_seen_no_time_is_left_out_as_there(tmp_path: Path) -> None:
    off = '[[datasets.subsets]]\nimage_dir = "hero"\nnum_repeats = 0\n'
    result = imported(tmp_path, "a.toml", f'[[datasets]]\n{off}[[datasets.subsets]]\nimage_dir = "friend"\n')
    assert str(result.config.images.folder) == "friend"
    assert "hero: num_repeats=0: below 1, so that the subset is left out, as there" in told(result)
    assert "hero: num_repeats" in lost_names(result)
    with pytest.raises(ConfigError, match="num_repeats is below 1 for every subset"):
        imported(tmp_path, "b.toml", f"[[datasets]]\n{off}")


BUCKETS = "[general]\nenable_bucket = true\n[[datasets]]\n"


def test_buckets_of_a_data_set_are_taken_over(tmp_path: Path) -> None:
    text = BUCKETS + "resolution = 64\nbucket_reso_steps = 32\nmin_bucket_reso = 32\nmax_bucket_reso = 96\n"
    result = imported(tmp_path, "a.toml", text + '[[datasets.subsets]]\nimage_dir = "hero"\n')
    images = result.config.images
    assert (images.bucket_step, images.bucket_min, images.bucket_max) == (32, 32, 96)
    assert told(result) == ""
    read_back(result, tmp_path)


def test_buckets_that_ours_refuses_are_said(tmp_path: Path) -> None:
    text = BUCKETS + "resolution = 500\nbucket_reso_steps = 30\nmin_bucket_reso = 16\n"
    result = imported(tmp_path, "a.toml", text + '[[datasets.subsets]]\nimage_dir = "hero"\n')
    images = result.config.images
    assert (images.resolution, images.bucket_step, images.bucket_min) == (496, 32, 32)
    for said in (
        "resolution=500: a multiple of 8 is needed: 496",
        "bucket_reso_steps=30: a multiple of 8 is needed: 32",
        "min_bucket_reso=16: at least 32",
    ):
        assert said in told(result)


@pytest.mark.parametrize(
    ("buckets", "said"),
    [("true", "buckets of the area of 80x80 px"), ("false", "images are cropped to squares of 80 px")],
)
def test_a_rectangle_of_a_data_set_is_said(tmp_path: Path, buckets: str, said: str) -> None:
    text = f'[[datasets]]\nresolution = [96, 64]\nenable_bucket = {buckets}\n[[datasets.subsets]]\nimage_dir = "a"\n'
    result = imported(tmp_path, "a.toml", text)
    assert result.config.images.resolution == 80
    assert f"resolution=[96, 64]: {'buckets' if buckets == 'true' else 'a rectangle'}" in told(result)
    assert said in told(result)


def of_two(first: int, second: int, limits: str) -> str:
    folders = [
        f'[[datasets]]\nresolution = {edge}\n{limits}\n[[datasets.subsets]]\nimage_dir = "at-{edge}"\n'
        for edge in (first, second)
    ]
    return "[general]\nenable_bucket = true\n" + "".join(folders)


def test_limits_are_held_against_the_folders_own_resolutions(tmp_path: Path) -> None:
    result = imported(tmp_path, "a.toml", of_two(64, 96, "min_bucket_reso = 64\nmax_bucket_reso = 128"))
    images = result.config.images
    assert (images.bucket_min, images.bucket_max) == (64, 128)
    assert [folder.resolution for folder in images.folders] == [64, 96]
    assert images.resolution == 64, "previews are of a size that is trained"
    read_back(result, tmp_path)
    lost = imported(tmp_path, "b.toml", of_two(512, 1024, "max_bucket_reso = 768")).lost
    assert lost == ("max_bucket_reso=768: has no effect at resolution 1024",)
    lost = imported(tmp_path, "c.toml", of_two(512, 1024, "min_bucket_reso = 768")).lost
    assert lost == ("min_bucket_reso=768: has no effect at resolution 512",)


def test_limits_without_buckets_are_said(tmp_path: Path) -> None:
    text = of_two(512, 1024, "min_bucket_reso = 256").replace("enable_bucket = true", "enable_bucket = false")
    assert imported(tmp_path, "a.toml", text).lost == ("min_bucket_reso=256: has no effect without buckets",)
