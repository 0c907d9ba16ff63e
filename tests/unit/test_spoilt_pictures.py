"""Pictures, masks and settings that spoil a run or do nothing in it, said before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.data.decoding import is_animated, open_image
from sdlora.data.lint.check import check
from sdlora.training.inputs.images import find_images
from sdlora.training.preflight.remarks import remarks


def save(path: Path, size: tuple[int, int] = (128, 128), mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 90 if mode == "L" else "red").save(path, **options)
    if not path.stem.endswith("-masklabel"):
        path.with_suffix(".txt").write_text("red, hat, sun", encoding="utf-8")
    return path


def said(folder: Path, label: str, *settings: str) -> list[str]:
    config = files.load(
        "demo.yaml", [f"images.folder={folder}", "images.cache=false", "validation.fraction=0", *settings]
    )
    return [text for kind, text in remarks(config, find_images(config)) if kind == label]


def checked(folder: Path, *settings: str) -> dict[str, str]:
    config = files.load(None, ["images.resolution=128", "images.cache=false", *settings])
    return {finding.rule: finding.message for finding in check(config, [folder]).findings}


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_of_an_animation_the_run_says_that_one_frame_is_trained(tmp_path: Path, ending: str) -> None:
    save(tmp_path / "b.png")
    save(tmp_path / f"a.{ending}", save_all=True, append_images=[Image.new("RGB", (128, 128), "blue")])
    assert said(tmp_path, "warning") == [f"1 animated file, of which the first frame is trained: a.{ending}"]


def test_a_phones_second_picture_is_no_animation(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))]
    )
    with open_image(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
        assert not is_animated(image)


def test_pictures_enlarged_to_a_blur_and_cut_to_a_strip_are_said_once_a_kind(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / f"tiny{number}.png", (1, 1))
    save(tmp_path / "wide.png", (2048, 128))
    save(tmp_path / "good.png", (64, 64))
    assert said(tmp_path, "warning") == [
        "5 images enlarged more than 4 times, to a blur: tiny0.png (128 times), tiny1.png (128 times), tiny2.png "
        "(128 times) and 2 more",
        "1 image cut to less than a third, as no bucket has the shape: wide.png (25% kept)",
    ]


def test_masks_of_another_shape_and_black_ones_are_said_before_training(tmp_path: Path) -> None:
    for name, size in (("a", (64, 128)), ("b", (64, 64)), ("c", (43, 43)), ("d", (128, 128))):
        save(tmp_path / f"{name}.png")
        save(tmp_path / f"{name}-masklabel.png", size, "L")
    Image.new("L", (128, 128)).save(tmp_path / "d-masklabel.png")
    shape = "1 mask of another shape than the image, over which each is stretched (64x128 px for 128x128)"
    black = "1 mask all black or wholly transparent, so nothing of the image is trained"
    assert said(tmp_path, "warning", "images.mask=file") == [f"{shape}: a-masklabel.png", f"{black}: d-masklabel.png"]
    found = checked(tmp_path, "images.mask=file")
    assert (found["mask-shape"], found["mask-empty"]) == (shape, black)
    assert said(tmp_path, "warning") == []


def test_a_wholly_transparent_image_is_said_where_transparency_is_the_mask(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    Image.new("RGBA", (128, 128), (0, 0, 0, 0)).save(tmp_path / "a.png")
    (warned,) = said(tmp_path, "warning", "images.mask=alpha")
    assert warned.endswith("nothing of the image is trained: a.png")
    assert "mask-empty" in checked(tmp_path, "images.mask=alpha")
    assert said(tmp_path, "warning") == []


def test_repeats_that_folders_overrule_everywhere_have_no_effect(tmp_path: Path) -> None:
    save(tmp_path / "10_x" / "a.png")
    save(tmp_path / "5_y" / "b.png")
    words = "images.repeats=3 has no effect: the folders' names (10_name) or images.folders give the repeats"
    assert any(words in text for text in said(tmp_path, "note", "images.repeats=3"))
    save(tmp_path / "z" / "c.png")
    assert not any(words in text for text in said(tmp_path, "note", "images.repeats=3"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["captions.tag_dropout=0.5", "captions.protected_tags=[nope, hat]"], "1 of 2 tags in no caption"),
        (
            ["captions.shuffle_tags=true", "captions.keep_tags=50"],
            "no effect: captions.keep_tags=50 and no caption has",
        ),
        (["captions.tag_dropout=0.5", "captions.keep_tags=3"], "captions.tag_dropout has no effect"),
        (["captions.shuffle_tags=true", "captions.keep_tags=2"], "no caption has more than 3 tags"),
    ],
)
def test_tag_settings_that_no_caption_follows_are_said(tmp_path: Path, settings: list[str], words: str) -> None:
    save(tmp_path / "a.png")
    clear = ["captions.trigger=null"]
    assert any(words in text for text in said(tmp_path, "note", *clear, *settings))
    (tmp_path / "a.txt").write_text(", ".join(["red", "hat", "sun", "nope", *map(str, range(60))]), encoding="utf-8")
    assert not any(words in text for text in said(tmp_path, "note", *clear, *settings))


def test_what_only_prompts_would_settle_in_a_caption_is_told(tmp_path: Path) -> None:
    for name, text in {
        "a": "a {red|green} hat",
        "b": "a {2$$x|y} hat",
        "c": "{1} __init__ed",
        "d": "a __colour__ hat",
    }.items():
        save(tmp_path / f"{name}.png").with_suffix(".txt").write_text(text, encoding="utf-8")
    choices = "2 captions with a choice such as {red|green}, trained as it stands: a.png, b.png"
    wildcards = "1 caption with a wildcard such as __colour__, trained as it stands: d.png"
    for settings, told in ((), [choices, wildcards]), (("captions.wildcards=true",), [wildcards]):
        assert [text.split(". ")[0] for text in said(tmp_path, "note", *settings) if "as it stands" in text] == told


def test_pictures_without_a_mask_beside_others_with_one_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png")
    save(tmp_path / "b-masklabel.png", mode="L")
    words = "2 images without a NAME-masklabel.png (images.mask=file), trained whole"
    assert said(tmp_path, "warning", "images.mask=file") == [f"{words}: a.png, c.png"]
    assert checked(tmp_path, "images.mask=file")["mask-missing"] == words
    assert "mask-missing" not in checked(tmp_path)
