"""The sample images are what their script draws, small, captioned, and leave the unseen prompts unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.images import scan
from tests.sample_images.__main__ import main as draw_all
from tests.sample_images.canvas import parse

FOLDER = Path(__file__).parents[2] / "sample_images"
SETS = {"blueprint": 24, "mascot": 16}


def test_drawing_again_gives_the_same_pictures_and_captions(tmp_path: Path) -> None:
    draw_all(tmp_path)
    kept = {path.relative_to(FOLDER) for name in SETS for path in (FOLDER / name).iterdir()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")} == kept
    for name in sorted(kept):
        if name.suffix == ".txt":
            assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
        else:
            difference = ImageChops.difference(rgb(tmp_path / name), rgb(FOLDER / name))
            assert max(ImageStat.Stat(difference).mean) < 1, f"{name}; another Pillow may differ by a shade, no more"


@pytest.mark.parametrize(("name", "count"), SETS.items())
def test_every_picture_is_512_px_with_a_caption_of_its_own(name: str, count: int) -> None:
    result = scan(ImagesConfig(folder=FOLDER / name, cache=False), CaptionsConfig())
    assert not result.skipped
    assert len(result.records) == count
    assert {(record.width_px, record.height_px) for record in result.records} == {(512, 512)}
    captions = {record.caption or "" for record in result.records}
    assert len(captions) == count
    start, end = ("", ", blueprint style") if name == "blueprint" else ("sdl-mascot, ", "")
    assert all(caption.startswith(start) and caption.endswith(end) for caption in captions)


def test_the_unseen_objects_are_not_in_the_style_set() -> None:
    captions = " ".join(path.read_text() for path in (FOLDER / "blueprint").glob("*.txt"))
    assert not any(word in captions for word in ("cat", "plane", "pizza"))


def test_the_whole_folder_stays_small() -> None:
    assert sum(path.stat().st_size for name in SETS for path in (FOLDER / name).iterdir()) < 1_500_000


@pytest.mark.parametrize("path", ["M1 2 3", "X1 2", "M1 2 Z3", "L"])
def test_a_mistake_in_a_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not a path command"):
        parse(path)


def rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
