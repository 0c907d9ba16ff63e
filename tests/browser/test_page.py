"""The page as a whole: what it costs, whom it talks to, who can use it, and the Dataset tab from upload to undo."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from browsing import enter, open_tab, reload, settle
from PIL import Image, ImageDraw

from tests.support.tiny_captioners import build_tagger

TABS = ("home", "dataset", "train", "runs", "mix", "generate", "settings")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PHONE = {"width": 390, "height": 844}
WINDOW = {"width": 1280, "height": 900}
MOST_MEMORY_MIB = 400
MOST_REQUESTS, MOST_KIB = 115, 520
"""Of the first page, most of them parts of Gradio; the editor of pictures, a third of all, comes when it is needed."""
WEIGHT = """() => {
  const loaded = ['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type));
  return [loaded.length, loaded.reduce((sum, each) => sum + each.transferSize, 0) / 1024];
}"""
OPEN_CLOSED = """(tab) => {
  const closed = [...document.querySelectorAll(`#tab-${tab} button.label-wrap:not(.open)`)];
  const seen = closed.filter((button) => button.getClientRects().length);
  seen.forEach((button) => button.click());
  return seen;
}"""

CAPTION = "#dataset-caption textarea"
TRIGGER = "#dataset-caption-trigger :is(textarea, input)"


def violations(page: Any, *rules: str) -> list[str]:
    """What axe finds against WCAG 2 A and AA (or these rules) on the page as it is, each with the element."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # of what passes the names alone: to list all elements of it takes longer than to check them
    options = {"runOnly": list(rules) or RULES, "resultTypes": ["violations"]}
    found = axe.run(page, options=options).response
    assert len(found["passes"]) > (0 if rules else 10), "axe has checked next to nothing"
    return [f"{each['id']}: {node['html'][:200]}" for each in found["violations"] for node in each["nodes"]]


def open_all(page: Any, tab: str) -> None:
    """Open every closed section of a tab, and those inside."""
    while (opened := page.evaluate_handle(OPEN_CLOSED, tab)).evaluate("(buttons) => buttons.length"):
        page.wait_for_function("(buttons) => buttons.every((one) => one.classList.contains('open'))", arg=opened)


def wait_for_text(page: Any, selector: str, text: str) -> None:
    page.locator(selector).filter(has_text=text).first.wait_for()


def wait_for_caption(page: Any, text: str) -> None:
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.value === text", arg=[CAPTION, text]
    )


def wait_for_content(page: Any, path: Path, text: str) -> None:
    for _ in range(300):
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{path.name}: {path.read_text(encoding='utf-8') if path.is_file() else 'absent'}")


def pictures(folder: Path) -> list[Path]:
    """Eight pictures of four shapes, the first four with captions."""
    folder.mkdir()
    files = []
    for number in range(8):
        size = [(320, 320), (480, 320), (320, 480), (200, 150)][number % 4]
        image = Image.new("RGB", size, (30 * number, 90, 250 - 30 * number))
        ImageDraw.Draw(image).ellipse((20, 20, 60 + 12 * number, 120), fill="white")
        image.save(folder / f"shape {number}.png")
        files.append(folder / f"shape {number}.png")
        if number < 4:
            (folder / f"shape {number}.txt").write_text(f"circle, number {number}", encoding="utf-8")
            files.append(folder / f"shape {number}.txt")
    return files


@pytest.fixture(scope="module")
def first_page(server: Any, lasting_page: Callable[..., Any]) -> Any:
    """The window that is opened first."""
    return lasting_page(server)


def test_the_first_page_is_cheap_and_asks_no_other_machine(server: Any, first_page: Any) -> None:
    page = first_page
    process = psutil.Process(server.process.pid)
    used, memory_mib = process.cpu_times(), process.memory_info().rss / 2**20
    cpu_seconds = used.user + used.system
    print(f"first page: {cpu_seconds:.1f} CPU s since the start (bar: 8), {memory_mib:.0f} MiB", file=sys.stderr)
    assert server.log.read_text(encoding="utf-8").startswith(f"sdlora: {server.url} (starting)")
    assert memory_mib < MOST_MEMORY_MIB
    requests, kib = page.evaluate(WEIGHT)
    print(f"first page: {requests} requests, {kib:.0f} KiB on the wire", file=sys.stderr)
    assert requests < MOST_REQUESTS
    assert kib < MOST_KIB
    for tab in TABS:
        open_tab(page, tab)
    assert page.locator("h1").count() == 1
    assert (server.look_ups, page.elsewhere, page.complaints) == ([], [], [])


def test_no_event_has_two_handlers_that_gradio_would_repeat_for_each_other(first_page: Any) -> None:
    """See `webui.gradio_quirks.defer_one_each`."""
    config = first_page.evaluate("() => window.gradio_config ?? fetch('config').then((answer) => answer.json())")
    events = Counter(
        (component, name)
        for event in config["dependencies"]
        if event["trigger_mode"] == "always_last"
        for component, name in event["targets"]
        if component is not None
    )
    assert len(events) > 50
    assert [event for event, number in events.items() if number > 1] == []


@pytest.mark.timeout(900)
def test_every_tab_is_accessible_in_light_and_dark_and_fits_a_phone(server: Any, first_page: Any) -> None:
    page = first_page
    page.emulate_media(reduced_motion="reduce")  # or axe would measure colours on their way
    open_tab(page, "dataset")
    page.click("[data-act=sample]")
    page.locator("#dataset-gallery .thumbnail-item").nth(8).wait_for()
    for tab in TABS:
        open_tab(page, tab)
        open_all(page, tab)
        page.evaluate("() => window.sdloraTheme('light')")
        for size in (PHONE, WINDOW):
            page.set_viewport_size(size)
            page.wait_for_timeout(300)  # until the layout has settled
            assert not violations(page), f"{tab}, {size['width']} px"
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], tab
        page.evaluate("() => window.sdloraTheme('dark')")  # the colours alone are others
        page.wait_for_timeout(300)
        assert not violations(page, "color-contrast"), f"{tab}, dark"
    page.keyboard.press("Escape")
    page.click("#show-keys")
    page.wait_for_selector("#keys[open]")
    assert not violations(page)
    assert server.look_ups == []


@pytest.mark.timeout(900)
def test_a_dataset_from_upload_to_undo_survives_reload_and_restart(server: Any, page: Any, tmp_path: Path) -> None:
    folder = server.root / "datasets" / "shapes"
    open_tab(page, "dataset")
    page.click("#dataset-new")
    enter(page, "#dataset-name input", "shapes")
    page.click("#dataset-create")
    wait_for_text(page, "#dataset-empty", "'shapes' is empty")
    assert page.is_disabled("#dataset-train")
    page.click("#dataset-new")
    enter(page, "#dataset-name input", "Shapes")
    page.click("#dataset-create")
    wait_for_text(page, "#dataset-name-problems", "'Shapes' is there already: choose another name")
    page.click("#dataset-cancel-naming")

    page.set_input_files("#dataset-upload input[type=file]", pictures(tmp_path / "upload"))
    wait_for_text(page, "#dataset-received", "Added 8 images, 4 captions")
    wait_for_text(page, "#dataset-summary", "4 without caption")
    assert sorted(path.name for path in folder.glob("*.png")) == [f"shape {number}.png" for number in range(8)]
    page.set_input_files("#dataset-upload input[type=file]", tmp_path / "upload" / "shape 0.png")
    wait_for_text(page, "#dataset-received", "1 file passed over")

    page.locator("#dataset-gallery .thumbnail-item").nth(4).click()
    wait_for_text(page, "#dataset-place", "shape 4.png (5 of 8)")
    wait_for_caption(page, "")
    page.click(CAPTION)
    page.keyboard.type("square, blue")
    wait_for_content(page, folder / "shape 4.txt", "square, blue")
    wait_for_text(page, "#dataset-tokens", "3 of 75 tokens. Saved.")
    page.keyboard.press("Alt+ArrowRight")  # the caption box keeps the cursor
    wait_for_text(page, "#dataset-place", "shape 5.png (6 of 8)")
    wait_for_caption(page, "")
    page.keyboard.type("triangle")
    page.keyboard.press("Alt+ArrowLeft")
    wait_for_caption(page, "square, blue")
    wait_for_content(page, folder / "shape 5.txt", "triangle")
    page.keyboard.type("!")
    page.keyboard.press("Control+s")
    wait_for_content(page, folder / "shape 4.txt", "square, blue!")
    page.keyboard.press("Backspace")  # deleting is saved too, and so is pasting
    wait_for_content(page, folder / "shape 4.txt", "square, blue")
    page.keyboard.insert_text("!")
    wait_for_content(page, folder / "shape 4.txt", "square, blue!")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    page.keyboard.press("Escape")

    edit_all_captions(page, folder)
    filter_and_delete(page, folder)

    enter(page, TRIGGER, "zwx")
    settle(page)  # it is kept
    open_tab(page, "settings")
    server.restart()
    reload(page)
    page.wait_for_selector("#settings-versions table")  # the tab that was open
    assert str(server.root) in page.inner_text("#settings-folders")
    open_tab(page, "dataset")
    wait_for_text(page, "#dataset-summary", "8 images and 6 captions")
    open_all(page, "dataset")
    assert (
        page.locator("#dataset-caption-trigger textarea, #dataset-caption-trigger input").first.input_value() == "zwx"
    )

    page.click("#dataset-train")
    page.wait_for_selector("#train-images-folder")
    assert page.input_value("#train-images-folder input") == "shapes"
    assert not [each for each in page.complaints if "cancelled" not in each]
    assert (server.look_ups, page.elsewhere) == ([], [])


def edit_all_captions(page: Any, folder: Path) -> None:
    """A bulk edit: preview, apply, undo, byte for byte."""
    before = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    open_all(page, "dataset")
    enter(page, "#dataset-bulk-text input", "zwx style")
    assert page.is_disabled("#dataset-bulk-apply")
    page.click("#dataset-bulk-preview")
    wait_for_text(page, "#dataset-bulk-result", "8 of 8 captions would change")
    assert page.locator("#dataset-bulk-result ins").count() == 8
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == before
    page.click("#dataset-bulk-apply")
    wait_for_text(page, "#dataset-bulk-result", "8 captions changed")
    wait_for_caption(page, "zwx style, square, blue!")
    assert (folder / "shape 7.txt").read_text(encoding="utf-8") == "zwx style"
    page.click("#dataset-undo:has-text('Undo the edit of 8 files')")
    page.wait_for_selector("#dataset-bulk-result:not(:has-text('changed'))")
    wait_for_caption(page, "square, blue!")
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == before


def filter_and_delete(page: Any, folder: Path) -> None:
    """Find images by text, then delete one and bring it back."""
    enter(page, "#dataset-find input", "circle 3")
    wait_for_text(page, "#dataset-place", "shape 3.png (1 of 1)")
    assert page.locator("#dataset-gallery .thumbnail-item").count() == 1
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#dataset-delete-image")
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    asked: list[str] = []
    page.click("#dataset-delete-image")
    wait_for_text(page, "#dataset-nothing", "No image passes the filter")
    assert asked == ["Delete shape 3.png? Undo brings it back."]
    assert not list(folder.glob("shape 3.*"))
    wait_for_text(page, "#dataset-buckets", "7 images an epoch")
    page.click("#dataset-undo:has-text('Undo the deletion of 2 files')")
    wait_for_text(page, "#dataset-place", "shape 3.png")
    wait_for_text(page, "#dataset-buckets", "8 images an epoch")
    page.press("#dataset-find input", "ControlOrMeta+a")
    page.press("#dataset-find input", "Delete")
    wait_for_text(page, "#dataset-pager", "8 images")


def caption_with_a_model(page: Any, folder: Path, tagger: Path) -> None:
    """A job writes the missing caption; the page shows it by itself, and Undo takes it away."""
    (folder / "2.txt").unlink()
    page.locator("#dataset-gallery .thumbnail-item").nth(2).click()
    wait_for_caption(page, "")
    page.fill("#dataset-caption-threshold input", "5")
    page.press("#dataset-caption-threshold input", "Tab")
    page.click("#dataset-caption-start")
    wait_for_text(page, "#dataset-caption-problems", "threshold: must be less than or equal to 1; got 5")
    page.fill("#dataset-caption-threshold input", "0.35")
    page.press("#dataset-caption-threshold input", "Tab")
    page.fill("#dataset-caption-model input", str(tagger))
    page.press("#dataset-caption-model input", "Enter")
    page.click("#dataset-caption-start")
    wait_for_text(page, "#dataset-caption-progress", "Captioning done")
    page.wait_for_function("(selector) => document.querySelector(selector)?.value", arg=CAPTION)
    assert page.input_value(CAPTION) == (folder / "2.txt").read_text(encoding="utf-8")
    assert (folder / "0.txt").read_text(encoding="utf-8") == "a, b"
    page.click("#dataset-undo:has-text('Undo the captioning of 1 file')")
    wait_for_caption(page, "")


def masks_of_transparency(page: Any, folder: Path) -> None:
    """A job makes masks where there is something to make them of, says so, and Undo takes them away."""
    page.fill("#dataset-masking-model input", "nobody/knows it")
    page.press("#dataset-masking-model input", "Enter")
    page.click("#dataset-masking-start")
    wait_for_text(page, "#dataset-masking-progress", "mask model 'nobody/knows it' was not found")
    page.fill("#dataset-masking-model input", "alpha")
    page.press("#dataset-masking-model input", "Enter")
    page.click("#dataset-masking-start")
    wait_for_text(page, "#dataset-masking-progress", "1 mask made, 2 without a subject.")
    wait_for_text(page, "#dataset-masking-progress", "nothing tells the subject: 0.png, 2.png.")
    wait_for_text(page, "#dataset-summary", "1 mask")
    assert (folder / "1-masklabel.png").is_file()
    page.click("#dataset-undo:has-text('Undo the mask of 1 file')")
    page.wait_for_selector("#dataset-summary:not(:has-text('1 mask'))")
    assert not (folder / "1-masklabel.png").exists()


@pytest.mark.timeout(900)
def test_a_dataset_is_checked_fixed_captioned_and_deleted_only_when_confirmed(
    server: Any, new_page: Callable[..., Any], tmp_path: Path
) -> None:
    folder = server.root / "datasets" / "twice"
    folder.mkdir(parents=True)
    for number in range(3):
        picture = Image.effect_noise((320, 320), 80 + number).convert("RGB")
        if number == 1:  # one of them has a transparent half
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a, b, a", encoding="utf-8")
    page = new_page(server)
    open_tab(page, "dataset")
    page.click("#dataset-chosen input")
    page.get_by_role("option", name="twice").click()
    wait_for_text(page, "#dataset-summary", "3 images and 3 captions")
    open_all(page, "dataset")
    page.click("#dataset-check")
    page.click("#dataset-report [data-fix='duplicate-tags']")
    wait_for_content(page, folder / "0.txt", "a, b")
    wait_for_caption(page, "a, b")
    wait_for_text(page, "#dataset-report", "Checked at")  # again, by itself
    assert page.locator("#dataset-report [data-fix='duplicate-tags']").count() == 0
    wait_for_text(page, "#dataset-undo", "Undo the fix of 3 files")

    caption_with_a_model(page, folder, build_tagger(tmp_path / "tagger"))

    masks_of_transparency(page, folder)

    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#dataset-delete")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#dataset-rename")  # nothing is stuck after a refusal
    enter(page, "#dataset-name input", "thrice")
    page.click("#dataset-give-name")
    page.wait_for_function("document.querySelector('#dataset-chosen input')?.value === 'thrice'")
    assert (server.root / "datasets" / "thrice").is_dir()
    page.click("#dataset-delete")
    wait_for_text(page, ".toast-body", "thrice is in the trash folder")
    assert [path.name.split("-")[-1] for path in (server.root / "trash").iterdir()] == ["thrice"]
    open_tab(page, "settings")
    page.wait_for_selector("#settings-empty-trash:not([disabled])")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#settings-empty-trash")
    wait_for_text(page, "#settings-trash", "0 deleted items")
    assert not list((server.root / "trash").iterdir())


def test_what_is_typed_stays_with_its_dataset_and_is_not_left_without_a_question(
    server: Any, page: Any, new_page: Callable[..., Any]
) -> None:
    for name in ("first", "second"):
        folder = server.root / "datasets" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), "teal").save(folder / "a.png")
    caption = server.root / "datasets" / "first" / "a.txt"
    page.goto(f"{server.url}/#dataset/first")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    settle(page)

    def choose(name: str) -> None:
        page.click("#dataset-chosen input")
        page.locator("[role=option]", has_text=name).click()

    held: list[Any] = []  # a slow connection: the next keys come before the first is answered, then another dataset
    is_slow = [True]
    page.route("**/gradio_api/run/**", lambda route: held.append(route) if is_slow else route.continue_())
    page.click("#dataset-caption textarea")
    page.keyboard.type("k")
    page.wait_for_timeout(200)
    page.keyboard.type("eep these words")
    choose("second")
    page.wait_for_timeout(300)
    is_slow.clear()
    for route in held:
        route.continue_()
    wait_for_content(page, caption, "keep these words")
    page.wait_for_function("document.querySelector('#dataset-editing :is(textarea, input)').value === 'second/a.png'")
    settle(page)
    assert "Saved" not in page.inner_text("#dataset-tokens")
    assert not (server.root / "datasets" / "second" / "a.txt").exists()

    choose("first")
    wait_for_caption(page, "keep these words")
    other = new_page(server, "/#dataset/first")
    enter(other, "#dataset-caption textarea", "theirs")
    wait_for_content(page, caption, "theirs")
    enter(page, "#dataset-caption textarea", "mine")
    page.wait_for_selector("#dataset-tokens:has-text('changed elsewhere')")
    settle(page)
    choose("second")
    page.wait_for_selector("#dataset-name-problems:has-text('a.png has two captions')")
    enter(page, "#dataset-find input", "a")
    settle(page)
    assert page.input_value("#dataset-caption textarea") == "mine"
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.evaluate("location.reload()")
    page.wait_for_timeout(1000)
    assert asked == ["beforeunload"]
    page.click("#dataset-tokens [data-act=mine]")
    wait_for_content(page, caption, "mine")
    settle(page)
    reload(page)
    page.wait_for_selector("body[data-ready]")
    wait_for_caption(page, "mine")
    assert not page.complaints
