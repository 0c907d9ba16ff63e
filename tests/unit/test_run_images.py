"""The images of a run, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.errors import DataError
from sdlora.training.inputs.images import find_images
from tests.support.dataset_pictures import picture, save_captioned


def test_images_that_are_all_held_out_are_refused(tiny_images: Path) -> None:
    overrides = [f"images.folder={tiny_images}", f"validation.folder={tiny_images}", "images.resolution=64"]
    with pytest.raises(DataError, match="all 10 training images are held out too"):
        find_images(files.load(None, overrides))


def test_missing_class_images_come_with_the_command_that_draws_them(tiny_images: Path, tmp_path: Path) -> None:
    settings = [f"images.folder={tiny_images}", "images.resolution=64", "objective.prior_preservation=class_images"]
    config = files.load(None, [*settings, f"images.class_folder={tmp_path / 'gone'}"])
    with pytest.raises(DataError, match=r"gone does not exist.* sdlora dataset class-images --out .*gone --prompt"):
        find_images(config)
    config = files.load(None, [*settings, f"images.class_folder={tmp_path}"])
    with pytest.raises(DataError, match="is empty. Generate its images"):
        find_images(config)


def test_prior_captions_lack_the_trigger_wherever_it_came_from(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "a photo of ohwx cat, sitting")
    save_captioned(picture(2), tmp_path / "b.png", "sleeping")
    config = files.load(
        None,
        [f"images.folder={tmp_path}", "captions.trigger=ohwx", "captions.prefix=ohwx art,", "images.cache=false",
         "objective.prior_preservation=base_prediction", "images.resolution=64"],
    )  # fmt: skip
    records = find_images(config).trained
    assert [record.prior_caption() for record in records] == ["art, a photo of cat, sitting", "art, sleeping"]
    assert all("ohwx" in record.plain_caption() for record in records)


@pytest.mark.parametrize("setting", ["captions.trigger=null", "objective.prior_prompt='a cat'"])
def test_a_prior_that_is_the_trained_caption_is_refused(tmp_path: Path, setting: str) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "a cat")
    settings = [f"images.folder={tmp_path}", "images.cache=false", "objective.prior_preservation=base_prediction"]
    with pytest.raises(DataError, match=r"would undo the training of 1 of 1 images \(a\.png\).*'a cat'"):
        find_images(files.load(None, [*settings, setting]))


def test_all_that_is_wrong_with_the_images_is_told_at_once(tmp_path: Path) -> None:
    trained, zero = tmp_path / "trained", tmp_path / "trained" / "0_never"
    for number in range(3):
        save_captioned(picture(number), trained / f"{number}.png", None if number == 1 else "a cat")
    save_captioned(picture(3), zero / "3.png", "a cat")
    (trained / "broken.png").write_bytes(b"junk")
    (tmp_path / "held").mkdir()
    settings = {
        "images.folder": trained, "images.mask": "file", "images.max_unreadable": 0.1, "images.resolution": 64,
        "images.class_folder": tmp_path / "gone", "objective.prior_preservation": "class_images",
        "validation.folder": tmp_path / "held", "images.cache": "false",
    }  # fmt: skip
    with pytest.raises(DataError) as caught:
        find_images(files.load(None, [f"{name}={value}" for name, value in settings.items()]))
    for told in (
        "1 of 5 image files can't be used", "1 of 4 images has no caption: 1.png", "0_never asks for 0 repeats",
        "none of the 4 images has a NAME-masklabel.png", "held and its subfolders hold no images",
        "gone does not exist",
    ):  # fmt: skip
        assert told in str(caught.value)
