"""What is typed or painted belongs to one image of one dataset, whatever is chosen meanwhile, here or elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from sdlora.data.sets import history, listing
from sdlora.data.sets.edits import Edit, make_edit, plan_edit

pytest.importorskip("gradio", reason="the page needs gradio")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The whole page, which begins no dry run, and its root."""
    from webui.app import build
    from webui.workspace import Workspace

    root = tmp_path_factory.mktemp("page") / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlora.launch.dry_runs.QUIET_SECONDS", float("inf"))
        yield build(Workspace(root)), root


@pytest.fixture
def datasets(served: Any) -> Iterator[Path]:
    """Two datasets, `one` and `two`, with images of the same names."""
    folder = served[1] / "datasets"
    for dataset, colour in (("one", "teal"), ("two", "navy")):
        for name in "abc":
            image = folder / dataset / f"{name}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), colour).save(image)
    yield folder
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.fixture
def window(served: Any, datasets: Path) -> Callable[[], Any]:
    """Opens windows, which begin at dataset one."""
    from tests.support.page_windows import Window

    def opened() -> Any:
        window = Window(served[0])
        window.type("dataset-chosen", "one")
        return window

    return opened


def caption(datasets: Path, image: str) -> str | None:
    path = (datasets / image).with_suffix(".txt")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def masks(datasets: Path) -> list[str]:
    return sorted(path.relative_to(datasets).as_posix() for path in datasets.glob("*/*-masklabel.png"))


def press(window: Any, image: str) -> None:
    window.do("dataset-gallery", "select", tile=image)


# ---- masks


def paint(window: Any) -> None:
    layer = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(layer).rectangle((0, 0, 31, 63), fill="red")
    window["dataset-mask-canvas"] = {**window["dataset-mask-canvas"], "layers": [layer]}


@pytest.mark.parametrize("image", ["a.png", "b.png"])  # two opens at a.png, a change of the name or none
def test_paint_is_saved_to_the_dataset_it_was_painted_in(datasets: Path, window: Any, image: str) -> None:
    page = window()
    press(page, image)
    page.do("dataset-mask-box", "expand")
    paint(page)
    page.type("dataset-chosen", "two")
    assert masks(datasets) == [f"one/{image[0]}-masklabel.png"]
    assert f"of {image} is trained" in page["dataset-mask-said"]
    assert page["dataset-painted"] == "two/a.png"
    assert page["dataset-mask-canvas"]["layers"] == []  # the canvas is of the new picture
    page.do("dataset-mask-save")
    assert "Nothing is painted over a.png" in page["dataset-mask-problems"]
    paint(page)
    page.do("dataset-mask-save")
    assert masks(datasets) == [f"one/{image[0]}-masklabel.png", "two/a-masklabel.png"]


def test_a_mask_saved_while_another_dataset_is_on_its_way_is_the_old_ones(datasets: Path, window: Any) -> None:
    page = window()
    page.do("dataset-mask-box", "expand")
    paint(page)
    page["dataset-chosen"] = "two"
    page.do("dataset-mask-save")
    page.do("dataset-mask-remove")
    page.do("dataset-mask-save")
    assert masks(datasets) == []
    assert "Nothing is painted" in page["dataset-mask-problems"]
    assert history.last_change(datasets / "two") is None


def test_paint_follows_its_dataset_to_another_name_and_is_told_of_where_that_is_gone(
    datasets: Path, window: Any
) -> None:
    page = window()
    page.do("dataset-mask-box", "expand")
    paint(page)
    page.do("dataset-rename")
    page["dataset-name"] = "uno"
    page.do("dataset-give-name")
    press(page, "b.png")
    assert masks(datasets) == ["uno/a-masklabel.png"]
    paint(page)
    shutil.rmtree(datasets / "uno")
    page.type("dataset-chosen", "two")
    assert "What was painted over it was not saved" in page["dataset-mask-said"]


# ---- captions, late answers


def test_a_caption_on_its_way_is_written_to_the_dataset_it_was_typed_in(datasets: Path, window: Any) -> None:
    page = window()
    page["dataset-caption"] = "k"
    (first,) = page.send("dataset-caption", "input")
    page["dataset-caption"] = "keep these words"
    page["dataset-chosen"] = "two"
    (choice, *_) = page.send("dataset-chosen", "input")
    first.arrive().answer()
    (again,) = page.send("dataset-caption", "input")  # Gradio sends what came meanwhile, with another dataset chosen
    again.arrive()
    choice.arrive().answer()
    assert page["dataset-editing"] == "two/a.png"
    again.answer()
    assert (caption(datasets, "one/a.png"), caption(datasets, "two/a.png")) == ("keep these words", None)
    assert "Saved" not in page["dataset-tokens"]  # which is of two's image by now
    assert "3 images and 0 captions" in page["dataset-summary"]


def test_of_two_texts_that_overtake_each_other_the_one_typed_later_stays(datasets: Path, window: Any) -> None:
    page = window()
    page["dataset-caption"] = "red"
    (first,) = page.send("dataset-caption", "input")
    page["dataset-caption"] = "red fox"
    page.do("dataset-next")
    first.arrive().answer()
    assert caption(datasets, "one/a.png") == "red fox"
    assert page["dataset-editing"] == "one/b.png"


def test_a_text_that_comes_after_its_image_was_read_anew_is_left_out(datasets: Path, window: Any) -> None:
    page, other = window(), window()
    other.type("dataset-caption", "theirs")
    page["dataset-caption"] = "mi"
    (late,) = page.send("dataset-caption", "input")
    page.type("dataset-caption", "mine")
    page.do("dataset-tokens", "select", act="mine")
    late.arrive().answer()
    assert "changed elsewhere" not in page["dataset-tokens"]
    page.type("dataset-caption", "mine too")
    assert caption(datasets, "one/a.png") == "mine too"


def test_a_press_on_its_way_reaches_no_image_of_another_dataset(datasets: Path, window: Any) -> None:
    page = window()
    press(page, "b.png")
    page["dataset-chosen"] = "two"
    page.do("dataset-delete-image")
    assert not (datasets / "one" / "b.png").exists()
    assert (datasets / "two" / "b.png").exists()
    page = window()
    page["dataset-bulk-text"] = "zwx"
    page.do("dataset-bulk-text", "submit")
    for noted in page.page.fns.values():  # the preview, which follows a script
        if getattr(noted.fn, "__name__", "") == "_preview":
            page.send_by(noted).arrive().answer()
    assert "2 captions" in page["dataset-bulk-apply"]
    page["dataset-chosen"] = "two"
    page.do("dataset-bulk-apply")
    assert "previewed for one, and two is chosen now" in page["dataset-bulk-problems"]
    page.do("dataset-report", "select", fix="exact-duplicate", of="one")
    assert "That is of one, and two is chosen now" in page["dataset-check-problems"]
    assert not list(datasets.glob("*/*.txt"))


# ---- captions, two windows


def test_next_does_not_undo_another_windows_caption(datasets: Path, window: Any) -> None:
    page, other = window(), window()
    for end in range(1, 8):
        page.type("dataset-caption", "red fox"[:end])
    press(other, "a.png")
    assert other["dataset-caption"] == "red fox"
    other.type("dataset-caption", "red ")  # as the first one had it while it was typed
    page.do("dataset-next")
    assert page["dataset-editing"] == "one/b.png"
    assert caption(datasets, "one/a.png") == "red "


@pytest.mark.parametrize("text", ["", "red"])
def test_a_caption_that_goes_back_to_an_earlier_text_elsewhere_is_asked_about(
    datasets: Path, window: Any, text: str
) -> None:
    page, other = window(), window()
    for typed in ("red", "red fox"):
        page.type("dataset-caption", typed)
    press(other, "a.png")
    other.type("dataset-caption", text)
    page.type("dataset-caption", "red fox!")
    assert "changed elsewhere" in page["dataset-tokens"]
    page.type("dataset-caption", "red fox")  # what this page wrote last: still not what is on the disk
    assert "changed elsewhere" in page["dataset-tokens"]
    assert caption(datasets, "one/a.png") == text
    page.do("dataset-tokens", "select", act="mine")
    page.type("dataset-caption", "red foxes")
    assert caption(datasets, "one/a.png") == "red foxes"


def test_a_bulk_edit_and_its_undo_elsewhere_are_not_undone_by_next(datasets: Path, window: Any) -> None:
    page, folder = window(), datasets / "one"
    page.type("dataset-caption", "red")
    page.type("dataset-caption", "zwx, red")
    page.type("dataset-caption", "red")
    make_edit(folder, plan_edit(listing.read(folder)[:1], Edit("front", "zwx")))
    page.do("dataset-next")
    assert caption(datasets, "one/a.png") == "zwx, red"
    press(page, "a.png")
    history.undo_last(folder)
    page.do("dataset-next")
    assert caption(datasets, "one/a.png") == "red"


# ---- ways off an image of which is asked whose caption it is to have


@pytest.fixture
def asked(datasets: Path, window: Any) -> Any:
    """A window that asks whose caption a.png is to have."""
    page, other = window(), window()
    other.type("dataset-caption", "theirs")
    page.type("dataset-caption", "mine, long")
    assert "changed elsewhere" in page["dataset-tokens"]
    return page


def leave_by_an_upload(page: Any) -> None:
    page["dataset-upload"] = []
    page.do("dataset-upload", "upload")


def leave_by_a_new_name(page: Any) -> None:
    page.do("dataset-new")
    page["dataset-name"] = "three"
    page.do("dataset-create")


WAYS = {
    "find": lambda page: page.type("dataset-find", "b"),
    "kind": lambda page: page.type("dataset-kind", "no caption"),
    "only": lambda page: page.do("dataset-summary", "select", kind="no caption"),
    "all": lambda page: page.do("dataset-nothing", "select", act="clear"),
    "tile": lambda page: press(page, "b.png"),
    "next": lambda page: page.do("dataset-next"),
    "previous": lambda page: page.do("dataset-previous"),
    "page": lambda page: page.do("dataset-page-on"),
    "dataset": lambda page: page.type("dataset-chosen", "two"),
    "address": lambda page: page.do("dataset-address", "select", name="two"),
    "new": leave_by_a_new_name,
    "upload": leave_by_an_upload,
    "report": lambda page: page.do("dataset-report", "select", image="b.png", of="one"),
    "evaluation": lambda page: page.do("runs-evaluation", "select", image="b.png", of="one"),
    "undo": lambda page: page.do("dataset-undo"),
    "mask": lambda page: page.do("dataset-mask-save"),
    "bulk": lambda page: page.do("dataset-bulk-apply"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_caption_that_is_asked_about_stays_in_its_box(datasets: Path, asked: Any, way: str) -> None:
    if way == "mask":
        asked.do("dataset-mask-box", "expand")
        paint(asked)
    WAYS[way](asked)
    assert (asked["dataset-editing"], asked["dataset-caption"]) == ("one/a.png", "mine, long")
    assert "changed elsewhere" in asked["dataset-tokens"]
    assert "data-unsaved" in asked["dataset-tokens"]  # which a reload asks about
    assert asked["dataset-chosen"] == "one"
    assert caption(datasets, "one/a.png") == "theirs"
    assert asked.said == []
    asked.do("dataset-tokens", "select", act="mine")
    assert caption(datasets, "one/a.png") == "mine, long"
    asked.type("dataset-chosen", "two")
    assert asked["dataset-editing"] == "two/a.png"


def test_of_two_presses_that_overtake_each_other_none_leaves(datasets: Path, asked: Any) -> None:
    asked["dataset-chosen"] = "two"
    (first, *_), (second, *_) = (asked.send("dataset-chosen", "input") for _ in range(2))  # as a list of Gradio's does
    second.arrive().answer()
    first.arrive().answer()
    assert (asked["dataset-editing"], asked["dataset-caption"]) == ("one/a.png", "mine, long")


def test_a_filter_writes_what_was_typed_last_before_it_turns_to_another_image(datasets: Path, window: Any) -> None:
    page = window()
    page["dataset-caption"] = "typed and not sent yet"
    page.type("dataset-find", "b.png")
    assert page["dataset-editing"] == "one/b.png"
    assert caption(datasets, "one/a.png") == "typed and not sent yet"


# ---- images that the filter doesn't let pass any more


def test_an_image_that_has_left_the_filter_is_deleted_and_the_one_after_it_shown(datasets: Path, window: Any) -> None:
    page = window()
    page.type("dataset-kind", "no caption")
    press(page, "b.png")
    page.type("dataset-caption", "hello")
    page.do("dataset-delete-image")
    assert page["dataset-problems"] == ""
    assert not (datasets / "one" / "b.png").exists()
    assert page["dataset-editing"] == "one/c.png"
    page.type("dataset-caption", "the last one")
    page.do("dataset-delete-image")
    assert page["dataset-editing"] == "one/a.png"
    page.do("dataset-delete-image")
    page.do("dataset-delete-image")
    assert "No image is chosen." in page["dataset-problems"]


def test_an_image_that_has_left_the_filter_stays_in_the_editor(datasets: Path, window: Any) -> None:
    page = window()
    page.type("dataset-kind", "no caption")
    press(page, "b.png")
    page.do("dataset-mask-box", "expand")
    page.type("dataset-caption", "hello")
    paint(page)
    page.do("dataset-mask-save")
    assert page["dataset-editing"] == "one/b.png"
    assert page["dataset-painted"] == "one/b.png"
    page.do("dataset-undo")
    assert page["dataset-editing"] == "one/b.png"
    page.do("dataset-next")
    assert page["dataset-editing"] == "one/c.png"
