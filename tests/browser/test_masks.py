"""A loss mask is painted over the picture in the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from browsing import settle, stays_when_asked
from PIL import Image


def test_a_mask_is_painted_over_the_picture_and_paint_is_never_lost(new_page: Callable[..., Any], server: Any) -> None:
    folder = server.root / "datasets" / "painted"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (300, 300), "teal").save(folder / f"{name}.png")
    page = new_page(server, "/#dataset/painted")
    page.wait_for_function("document.querySelector('#dataset-opened :is(textarea, input)')?.value === 'painted'")

    def under_the_brush(name: str) -> None:
        page.wait_for_function(
            "(place) => document.querySelector('#dataset-painted :is(textarea, input)')?.value === place",
            arg=f"painted/{name}",
        )
        page.wait_for_selector("#dataset-mask-canvas canvas")
        page.wait_for_timeout(1500)  # the editor takes the picture a while after it is there

    def paint() -> None:
        canvas = page.locator("#dataset-mask-canvas canvas").first
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 10, y)
        page.mouse.down()
        page.mouse.move(x + 10, y, steps=5)
        page.mouse.up()

    page.click("#dataset-mask-box button.label-wrap")
    under_the_brush("a.png")
    page.click("#dataset-mask-save")
    page.get_by_text("Nothing is painted over a.png").wait_for()
    paint()
    assert stays_when_asked(page)
    page.click("#dataset-mask-save")
    page.locator("#dataset-mask-said").filter(has_text="of a.png is trained").wait_for()
    settle(page)
    assert not stays_when_asked(page)
    page.wait_for_selector("body[data-ready]")
    page.click("#dataset-mask-box button.label-wrap")
    under_the_brush("a.png")
    with Image.open(folder / "a-masklabel.png") as mask:
        assert mask.size == (300, 300)
        assert (mask.getpixel((150, 150)), mask.getpixel((2, 2))) == (255, 0)
    page.locator("#dataset-undo").filter(has_text="Undo the mask of 1 file").wait_for()

    # Another image comes: what was painted and not saved is saved for the image it was painted over.
    page.click("#dataset-next")
    under_the_brush("b.png")
    paint()
    page.click("#dataset-previous")
    page.locator("#dataset-mask-said").filter(has_text="of b.png is trained").wait_for()
    assert (folder / "b-masklabel.png").is_file()
    under_the_brush("a.png")
    page.click("#dataset-mask-remove")
    page.locator("#dataset-mask-said").filter(has_text="all of a.png is trained").wait_for()
    assert not (folder / "a-masklabel.png").exists()
    assert not [each for each in page.complaints if "Nothing is painted" not in each]
