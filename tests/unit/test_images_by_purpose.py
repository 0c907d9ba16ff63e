"""Class images beside training images: which is which, whatever folder lies in which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.data.lint.check import check as check_dataset
from sdlora.errors import DataError
from sdlora.training.inputs.images import find_images
from sdlora.training.preflight.step_count import count_steps


def pictures(folder: Path, number: int, colour: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        Image.new("RGB", (64, 64), (colour, 9 * index, 200)).save(folder / f"{folder.name}{index}.png")
        (folder / f"{folder.name}{index}.txt").write_text(f"a cat, number {index}")
    return folder


def configured(images: dict[str, Any], **others: Any) -> TrainConfig:
    prior = {"prior_preservation": "class_images"}
    values = {"images": {"cache": False, "resolution": 64, **images}, "objective": prior, **others}
    return files.validate({**values, "optimization": {"batch_size": 1, "epochs": 1}}, "test")


def names(records: Any, *, is_class: bool) -> list[str]:
    return sorted(record.path.name for record in records if record.is_class == is_class)


@pytest.mark.parametrize("way", ["class folder inside", "images inside", "both listed"])
def test_a_picture_is_trained_for_one_purpose_whatever_folder_lies_in_which(tmp_path: Path, way: str) -> None:
    outer = pictures(tmp_path / "own", 2)
    inner = pictures(outer / "inside", 3, colour=90)
    own, other = (outer, inner) if way != "images inside" else (inner, outer)
    images: dict[str, Any] = {"folder": str(own), "class_folder": str(other)}
    if way == "both listed":
        images = {"folders": [{"folder": str(own)}, {"folder": str(other), "is_class": True}]}
    config = configured(images)
    found = find_images(config)
    assert names(found.trained, is_class=way == "images inside") == ["own0.png", "own1.png"]
    assert names(found.trained, is_class=way != "images inside") == [f"inside{index}.png" for index in range(3)]
    assert found.plan.samples == 5
    counted = count_steps(config)
    assert counted is not None
    assert (counted.images, counted.samples, counted.steps) == (5, 5, 5)
    assert check_dataset(config).images == 5


def test_one_folder_for_both_is_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "own", 2)
    config = configured({"folder": str(folder), "class_folder": str(folder)})
    for look in (find_images, check_dataset):
        with pytest.raises(DataError, match="own: named twice, as training images and as class images"):
            look(config)


def test_pictures_of_the_subject_alone_are_held_out(tmp_path: Path) -> None:
    folders = [
        {"folder": str(pictures(tmp_path / "cat", 4))},
        {"folder": str(pictures(tmp_path / "cats", 40, colour=90)), "is_class": True, "repeats": 2},
    ]
    config = configured({"folders": folders}, validation={"fraction": 0.25})
    found = find_images(config)
    assert [record.is_class for record in found.held_out] == [False]
    assert (len(names(found.trained, is_class=False)), len(names(found.trained, is_class=True))) == (3, 40)
    counted = count_steps(config)
    assert counted is not None
    assert (counted.held_out, counted.samples) == (1, found.plan.samples) == (1, 83)
    with pytest.raises(DataError, match=r"would hold out all 4 images"):
        find_images(configured({"folders": folders}, validation={"fraction": 0.9}))
    held_out = {"folder": str(tmp_path / "cat")}
    with pytest.raises(DataError, match="all 4 training images are held out too"):
        find_images(configured({"folders": folders}, validation=held_out))
    with pytest.raises(DataError, match="all 40 images are class images"):
        find_images(configured({"folders": folders[1:]}))


def test_a_class_image_that_is_trained_too_is_left_out_and_told(tmp_path: Path) -> None:
    own, others = pictures(tmp_path / "cat", 2), pictures(tmp_path / "cats", 2, colour=90)
    (others / "copy.png").write_bytes((own / "cat0.png").read_bytes())
    (others / "copy.txt").write_text("a cat")
    found = find_images(configured({"folder": str(own), "class_folder": str(others)}))
    assert names(found.trained, is_class=True) == ["cats0.png", "cats1.png"]
    assert "1 class image left out, as the same pictures are trained: copy.png" in found.scan.warnings


def test_links_to_pictures_of_another_folder_are_trained_as_their_folder_says_or_told_of(tmp_path: Path) -> None:
    own, best = pictures(tmp_path / "cat", 3), tmp_path / "best"
    best.mkdir()
    for name in ("cat0.png", "cat0.txt"):
        (best / name).symlink_to(own / name)
    listed = [{"folder": str(own)}, {"folder": str(best), "repeats": 10}]
    config = files.validate({"images": {"cache": False, "folders": listed}}, "test")
    found = find_images(config)
    assert [
        (record.path.parent.name, record.repeats) for record in found.trained if record.path.name == "cat0.png"
    ] == [
        ("cat", 1),
        ("best", 10),
    ]
    config = files.validate({"images": {"cache": False, "folder": [str(own), str(best)]}}, "test")
    found = find_images(config)
    assert len(found.trained) == 3
    assert any(
        "best: 1 image of another folder, linked here and trained once: cat0.png" in each for each in found.scan.notes
    )
