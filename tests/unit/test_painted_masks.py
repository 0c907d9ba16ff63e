"""Loss masks painted by hand, with the mask before kept for Undo."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdlora.data.sets import history, listing, masks
from sdlora.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (200, 100), "teal").save(tmp_path / "fox.png")
    return tmp_path


def painted(size: tuple[int, int], box: tuple[int, int, int, int]) -> list[Image.Image]:
    """A layer with paint in one box, of half the image's size as a page shows it."""
    layer = Image.new("RGBA", size)
    layer.paste((255, 45, 149, 255), box)
    return [layer]


def read(folder: Path) -> Image.Image:
    (item,) = listing.read(folder)
    assert item.mask is not None
    with Image.open(item.mask) as mask:
        return mask.convert("L") if mask.mode == "RGB" else mask.copy()


def test_paint_says_what_is_trained_at_the_images_own_size(folder: Path) -> None:
    (item,) = listing.read(folder)
    words = masks.save_painted(folder, item, painted((100, 50), (0, 0, 25, 50)), "trained")
    assert words == "Saved: 25% of fox.png is trained, once images.mask on Train is file."
    mask = read(folder)
    assert (mask.mode, mask.size) == ("L", (200, 100))
    assert (mask.getpixel((10, 50)), mask.getpixel((190, 50))) == (255, 0)


def test_paint_can_stand_for_what_is_left_out_and_undo_brings_the_mask_before_back(folder: Path) -> None:
    Image.new("L", (200, 100), 255).save(folder / "fox-masklabel.webp", lossless=True)
    (item,) = listing.read(folder)
    masks.save_painted(folder, item, painted((100, 50), (0, 0, 25, 50)), "left out")
    assert not (folder / "fox-masklabel.webp").exists()
    assert read(folder).getpixel((10, 50)) == 0
    change = history.last_change(folder)
    assert change is not None
    assert change.words == "Undo the mask of 2 files"
    history.undo_last(folder)
    assert not (folder / "fox-masklabel.png").exists()
    assert read(folder).getpixel((10, 50)) == 255


def test_a_mask_is_removed_and_can_be_had_back(folder: Path) -> None:
    Image.new("L", (200, 100), 255).save(folder / "fox-masklabel.png")
    (item,) = listing.read(folder)
    assert masks.remove_mask(folder, item) == "Removed: all of fox.png is trained."
    (item,) = listing.read(folder)
    with pytest.raises(DataError, match="has no mask file"):
        masks.remove_mask(folder, item)
    history.undo_last(folder)
    assert listing.read(folder)[0].mask is not None


def test_nothing_painted_or_all_left_out_is_refused(folder: Path) -> None:
    (item,) = listing.read(folder)
    with pytest.raises(DataError, match="Nothing is painted over fox.png"):
        masks.save_painted(folder, item, [], "trained")
    with pytest.raises(DataError, match="would leave nothing of it to train"):
        masks.save_painted(folder, item, painted((100, 50), (0, 0, 100, 50)), "left out")
    (folder / "fox.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="can't be read, so it gets no mask"):
        masks.save_painted(folder, item, painted((100, 50), (0, 0, 9, 9)), "trained")


def test_of_a_mask_that_two_images_share_both_are_told(folder: Path) -> None:
    Image.new("RGB", (200, 100), "teal").save(folder / "fox.jpg")
    Image.new("RGB", (200, 100), "teal").save(folder / "foxes.png")
    item = listing.read(folder)[1]
    assert item.name == "fox.png"
    words = masks.save_painted(folder, item, painted((100, 50), (0, 0, 25, 50)), "trained")
    assert words.endswith("is file. The same goes for fox.jpg: it shares the mask.")
    assert masks.remove_mask(folder, listing.read(folder)[0]).endswith("goes for fox.png: it shares the mask.")
