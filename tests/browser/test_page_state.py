"""Nothing a person typed is lost, and nothing shown is untrue: lists left as they were, late answers, two windows.

Each test opens its tab alone, by its address, and sees that it polls without an error.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import enter, open_tab, reload, wait_until
from PIL import Image

from sdlora import events
from tests.support.emoji_adapters import random_adapter
from tests.support.told_runs import made, started, step, told

TAGS = "#mix-tags textarea, #mix-tags input"
CAPTION = "#dataset-caption textarea"


def picture(path: Path, colour: str, caption: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (96, 96), colour).save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture(scope="module")
def server(browser: Any, start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A studio with two datasets, two adapters, three generated pictures, an export, and runs in many states."""
    root = tmp_path_factory.mktemp("state") / "root"
    for name in ("b", "c", "d"):
        picture(root / "datasets" / "many" / f"{name}.png", "teal", f"caption {name}")
        picture(root / "outputs" / "day" / f"{name}.png", "orange")
    picture(root / "datasets" / "other" / "x.png", "navy")
    random_adapter(root / "adapters" / "ink.safetensors", 1, trigger="ink style")
    random_adapter(root / "adapters" / "wash.safetensors", 2, rank=4)
    made(root / "runs", "unbegun")
    for name, last in (
        ("done", events.RunFinished(step=2, reason="completed", adapter_path=None, seconds=1.0)),
        ("broken", events.RunFailed(step=2, message="the card is full")),
    ):
        run = made(root / "runs", name)
        told(run, started(2), step(1), step(2), last)
        run.files.log.write_text(f"log of {name}\n", encoding="utf-8")
    job = root / ".webui" / "jobs" / "20260101-000000-mix"
    job.mkdir(parents=True)
    about = {"arguments": ["mix", "--out", "x.safetensors"], "created_at": 1767225600.0}
    (job / "job.json").write_text(json.dumps(about), encoding="utf-8")
    return start_server(root)


@pytest.fixture
def alone(new_page: Callable[..., Any], server: Any) -> Callable[[str], Any]:
    """Opens a window on one tab: with runs that wait, failed and finished, and an export that is over."""

    def opened(tab: str) -> Any:
        page = new_page(server, f"/#{tab}")
        page.wait_for_selector(f"#tab-{tab.partition('/')[0]}:visible")
        page.wait_for_timeout(1500)
        assert page.locator(".toast-body").count() == 0
        assert not page.complaints
        return page

    return opened


def value(page: Any, element: str) -> str:
    return str(page.locator(f"#{element} :is(input, textarea)").first.input_value())


def lists_open(page: Any) -> int:
    return int(page.locator("ul[role=listbox]:visible").count())


# ---- Train


def leave_the_preset_as_it_is(page: Any) -> None:
    """Esc, Tab, a press elsewhere, and the same choice again."""
    for key in ("Escape", "Tab"):
        page.click("#train-preset input")
        page.keyboard.press(key)
    page.click("#train-preset input")
    page.click("#train-about")
    page.click("#train-preset input")
    page.locator("[role=option][aria-selected=true]").first.click()
    page.wait_for_timeout(1500)
    assert page.locator("#train-aside .aside").count() == 0
    assert value(page, "train-optimization-steps") == "33"
    assert lists_open(page) == 0


def another_preset_asks_and_can_be_undone(page: Any) -> None:
    page.click("#train-preset input")
    page.locator("[role=option]", has_text="sd15_person").first.click()
    page.wait_for_selector("#train-aside:has-text('Steps')")
    assert value(page, "train-optimization-steps") == "33"
    page.click("#train-aside [data-act=keep]")
    page.wait_for_selector("#train-aside .aside", state="detached")
    assert value(page, "train-preset").startswith("demo")
    page.click("#train-preset input")
    page.locator("[role=option]", has_text="sd15_person").first.click()
    page.click("#train-aside [data-act=use-preset]")
    page.wait_for_selector("#train-aside [data-act=undo]")
    wait_until(page, lambda: value(page, "train-optimization-steps") != "33")
    page.click("#train-aside [data-act=undo]")
    wait_until(page, lambda: value(page, "train-optimization-steps") == "33")
    assert value(page, "train-preset").startswith("demo")


def yaml_counts_once_it_is_applied(page: Any) -> None:
    page.click("#train-yaml-box > button")
    wait_until(page, lambda: "steps: 33" in value(page, "train-yaml"))
    page.fill("#train-yaml textarea", "adapter: {rnak: 4}")
    page.wait_for_selector("#train-problems:has-text('is not applied')")
    assert page.is_disabled("#train-start")
    page.click("#train-yaml-apply")
    page.wait_for_selector("#train-yaml-problems:has-text(\"did you mean 'rank'\")")
    assert page.is_disabled("#train-start")
    applied = value(page, "train-yaml-base").replace("steps: 33", "steps: 44")
    page.fill("#train-yaml textarea", applied)
    wait_until(page, lambda: value(page, "train-yaml") == applied)
    page.click("#train-yaml-apply")
    wait_until(page, lambda: value(page, "train-optimization-steps") == "44")
    page.wait_for_selector("#train-yaml-problems .problems", state="detached")
    page.wait_for_selector("#train-problems .problems", state="detached")
    page.wait_for_selector("#train-start:not([disabled])")


def start_runs_what_is_shown(page: Any, server: Any) -> None:
    """Pressed while the form is being filled anew, Start refuses."""
    runs = {path.name for path in (server.root / "runs").iterdir()}
    page.evaluate("""() => {
      document.querySelector('#train-reset').click();
      document.querySelector('#train-start').click();
    }""")
    page.wait_for_selector("#train-problems:has-text('changed while you pressed')")
    wait_until(page, lambda: value(page, "train-optimization-steps") == "300")
    assert {path.name for path in (server.root / "runs").iterdir()} == runs
    page.click("#train-aside [data-act=undo]")
    wait_until(page, lambda: value(page, "train-optimization-steps") == "44")


def test_what_was_typed_into_train_stays(alone: Callable[[str], Any], server: Any) -> None:
    page = alone("train")
    page.wait_for_selector("#train-start:not([disabled])")
    enter(page, "#train-optimization-steps input", "33")
    page.keyboard.press("Tab")
    wait_until(page, lambda: "steps=33" in value(page, "train-command"))
    leave_the_preset_as_it_is(page)
    another_preset_asks_and_can_be_undone(page)
    page.click("#train-images-folder input")
    for _ in range(12):
        page.keyboard.press("Tab")
        page.wait_for_timeout(50)
    wait_until(page, lambda: lists_open(page) <= 1)
    page.click("#train-about")
    wait_until(page, lambda: lists_open(page) == 0)
    yaml_counts_once_it_is_applied(page)
    start_runs_what_is_shown(page, server)
    assert not page.complaints


# ---- presses


def test_a_press_opens_what_was_pressed_whatever_the_list_is_by_then(alone: Callable[[str], Any], server: Any) -> None:
    page = alone("generate")
    page.click("#generate-history-tab-button")
    page.wait_for_selector("#generate-history .thumbnail-item >> nth=2")
    picture(server.root / "outputs" / "day" / "new.png", "red")  # it is the first of the list now
    page.locator("#generate-history .thumbnail-item", has_text="c").first.click()
    page.wait_for_selector("#generate-picture img[src$='c.png']")
    assert value(page, "generate-chosen").endswith("c.png")
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    page.click("#generate-delete")
    wait_until(page, lambda: not (server.root / "outputs" / "day" / "c.png").exists())
    assert asked == ["Move c.png to the trash?"]
    (server.root / "outputs" / "day" / "d.png").unlink()
    page.locator("#generate-history .thumbnail-item", has_text="b").first.click()
    page.wait_for_selector("#generate-picture img[src$='b.png']")

    # a size chosen by hand outlives a look at the list of sizes
    for side in ("width_px", "height_px"):
        enter(page, f"#generate-{side} input", "640")
        page.keyboard.press("Tab")
    wait_until(page, lambda: value(page, "generate-size") == "Another")
    page.click("#generate-size input")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)
    assert (value(page, "generate-width_px"), value(page, "generate-height_px")) == ("640", "640")

    open_tab(page, "dataset")
    page.wait_for_selector("#dataset-gallery .thumbnail-item >> nth=2")
    picture(server.root / "datasets" / "many" / "a.png", "white")
    page.locator("#dataset-gallery .thumbnail-item", has_text="d.png").click()
    page.wait_for_selector("#dataset-place:has-text('d.png (4 of 4)')")
    (server.root / "datasets" / "many" / "c.png").unlink()
    page.locator("#dataset-gallery .thumbnail-item", has_text="c.png").click()
    page.wait_for_selector("#dataset-problems:has-text('c.png is not in the dataset any more')")

    open_tab(page, "mix")
    page.wait_for_selector("#mix-library .thumbnail-item >> nth=1")
    random_adapter(server.root / "adapters" / "aaa.safetensors", 3)
    page.locator("#mix-library .thumbnail-item", has_text="wash").click()
    page.wait_for_selector("#mix-card h4:has-text('wash')")
    assert not [each for each in page.complaints if "cancelled" not in each]


# ---- rows


def test_rows_and_text_are_one_list_in_every_tab_and_window(
    alone: Callable[[str], Any], server: Any, new_page: Any
) -> None:
    page = alone("mix")
    for number, name in enumerate(("wash", "ink"), 1):
        page.locator("#mix-library .thumbnail-item", has_text=name).click()
        page.wait_for_selector(f"#mix-card h4:has-text('{name}')")
        page.click("#mix-add")
        page.wait_for_selector(f"#mix-row-{number}")
    enter(page, TAGS, "<lora:ink:0.25> <lora:wash:0.5>")
    page.keyboard.press("Enter")  # applies, and the order counts
    wait_until(page, lambda: value(page, "mix-row-1-weight") == "0.5")
    order = "[...document.querySelectorAll('#mix-rows .adapter-row')].map((row) => row.id)"
    assert page.evaluate(order) == ["mix-row-2", "mix-row-1"]
    assert page.input_value(TAGS) == "<lora:ink:0.25> <lora:wash:0.5>"

    page.click("#mix-row-1-more summary")
    page.fill("#mix-row-1-blocks input", "nonsense")
    page.press("#mix-row-1-blocks input", "Tab")
    page.wait_for_selector("#mix-row-1 .bad:has-text('“nonsense” was not taken')")
    assert page.evaluate("document.querySelector('#mix-row-1-more').open")

    page.fill("#mix-row-1-range input", "0:2:0.5")  # typed, and handed on by its own button only
    for act, rows in (("up", ["mix-row-1", "mix-row-2"]), ("down", ["mix-row-2", "mix-row-1"])):
        page.click(f"#mix-row-1-{act}")
        wait_until(page, lambda rows=rows: page.evaluate(order) == rows)
    assert page.input_value("#mix-row-1-range input") == "0:2:0.5"
    for weight, said in (("", "attached"), ("0.5", "detached")):
        page.fill("#mix-row-2-weight input", weight)
        page.press("#mix-row-2-weight input", "Tab")
        page.wait_for_selector("#mix-row-2 .bad", state=said)

    for weight in ("0.1", "0.2", "0.3", "0.4"):  # the answers may overtake each other
        page.fill("#mix-row-2-weight input", weight)
        page.press("#mix-row-2-weight input", "Tab")
    wait_until(page, lambda: page.input_value(TAGS).startswith("<lora:ink:0.4>"))
    assert value(page, "mix-row-2-weight") == "0.4"

    other = new_page(server, "/#generate")
    other.wait_for_selector("#generate-row-2")
    other.click("#generate-row-2-remove")
    page.wait_for_selector("#mix-row-2", state="detached")
    wait_until(page, lambda: page.input_value(TAGS) == "<lora:wash:0.5>")
    open_tab(page, "generate")
    assert page.locator("#generate-rows .adapter-row").count() == 1
    assert not page.complaints
    assert "dictionary changed size" not in server.log.read_text(encoding="utf-8")


# ---- runs


def test_a_runs_view_is_of_one_run(alone: Callable[[str], Any], server: Any) -> None:
    held: list[Any] = []
    page = alone("runs")
    page.click("#runs-view-log-button")
    page.click("#runs-list [data-run=done]")
    wait_until(page, lambda: "log of done" in value(page, "runs-log"))

    page.route("**/gradio_api/run/**", lambda route: held.append(route) if not held else route.continue_())
    page.click("#runs-list [data-run=unbegun]")  # its answer comes last
    wait_until(page, lambda: bool(held))
    assert page.get_attribute("#runs-list [data-run=unbegun]", "aria-pressed") == "true"  # at once
    page.click("#runs-list [data-run=broken]")
    wait_until(page, lambda: "log of broken" in value(page, "runs-log"))
    held[0].continue_()
    page.wait_for_timeout(1500)
    page.unroute("**/gradio_api/run/**")
    assert "broken failed at step 2" in page.inner_text("#runs-status").replace("\n", " ")
    assert "log of broken" in value(page, "runs-log")
    wait_until(page, lambda: page.url.endswith("#runs/broken"))
    page.click("#runs-list [data-run=unbegun]")
    page.wait_for_selector("#runs-status:has-text('not begun')")
    wait_until(page, lambda: page.url.endswith("#runs/unbegun"))
    assert "No log yet" in value(page, "runs-log")
    page.click("#runs-list [data-run=unbegun]")  # the one in view: there is no news, but the press is answered
    page.wait_for_selector("#runs-details:not([aria-busy])")
    page.route("**/gradio_api/run/**", lambda route: route.fulfill(status=500, json={"error": None}))
    page.click("#runs-list [data-run=done]")
    page.wait_for_selector("#runs-details[aria-busy]")
    page.wait_for_timeout(500)
    page.unroute("**/gradio_api/run/**")  # that answer is lost: the page goes on all the same
    page.wait_for_selector("#runs-details:not([aria-busy])")
    page.click("#runs-list [data-run=broken]")
    wait_until(page, lambda: "log of broken" in value(page, "runs-log"))
    page.click("#runs-list [data-run=unbegun]")
    page.wait_for_selector("#runs-status:has-text('not begun')")
    wait_until(page, lambda: page.url.endswith("#runs/unbegun"))
    page.go_back()
    wait_until(page, lambda: "log of broken" in value(page, "runs-log"))
    reload(page)
    wait_until(page, lambda: "broken" in page.inner_text("#runs-status"))
    # Deleted elsewhere while its question is open: neither that nor any other one is deleted, and both are told.
    page.click("#runs-list [data-run=unbegun]")
    page.wait_for_selector("#runs-status:has-text('not begun')")
    page.click("#runs-delete")
    page.wait_for_selector("#runs-question:has-text('Move the run unbegun')")
    shutil.rmtree(server.root / "runs" / "unbegun")
    page.wait_for_selector(".toast-body:has-text('The run unbegun is not there any more.')")
    page.click("#runs-yes")
    page.wait_for_selector("#runs-problems:has-text('The run unbegun is not there any more.')")
    page.wait_for_selector("#runs-yes", state="hidden")
    assert {path.name for path in (server.root / "runs").iterdir() if path.is_dir()} >= {"done", "broken"}
    assert not page.complaints


@pytest.mark.parametrize("tab", ["home", "settings"])  # the other tests of this file open the others
def test_each_tab_opened_alone_polls_without_an_error(tab: str, alone: Callable[[str], Any]) -> None:
    alone(tab)


# ---- two windows, one dataset


def test_two_windows_keep_their_places_and_both_captions(
    alone: Callable[[str], Any], server: Any, new_page: Any
) -> None:
    caption = server.root / "datasets" / "many" / "b.txt"
    page = alone("dataset/many")
    page.locator("#dataset-gallery .thumbnail-item", has_text="b.png").click()
    wait_until(page, lambda: value(page, "dataset-caption") == "caption b")
    other = new_page(server, "/#dataset/many")
    other.locator("#dataset-gallery .thumbnail-item", has_text="b.png").click()
    wait_until(other, lambda: value(other, "dataset-caption") == "caption b")
    enter(page, CAPTION, "mine")
    wait_until(page, lambda: caption.read_text(encoding="utf-8") == "mine")
    enter(other, CAPTION, "theirs")
    other.wait_for_selector("#dataset-tokens:has-text('changed elsewhere')")
    assert caption.read_text(encoding="utf-8") == "mine"
    assert value(other, "dataset-caption") == "theirs"
    other.click("#dataset-tokens [data-act=mine]")
    wait_until(other, lambda: caption.read_text(encoding="utf-8") == "theirs")
    enter(page, CAPTION, "again")
    page.wait_for_selector("#dataset-tokens:has-text('“theirs”')")
    page.click("#dataset-tokens [data-act=theirs]")
    wait_until(page, lambda: value(page, "dataset-caption") == "theirs")

    # each window has its own tab, and Back works in it
    open_tab(other, "runs")
    open_tab(page, "settings")
    page.go_back()
    page.wait_for_selector("#tab-dataset:visible")
    reload(other)
    other.wait_for_selector("#tab-runs:visible")

    # what is said of a dataset goes with it, and one that is gone is told of in words
    page.set_input_files("#dataset-upload input[type=file]", server.root / "outputs" / "day" / "b.png")
    page.wait_for_selector("#dataset-received:has-text('1 image')")
    page.click("#dataset-chosen input")
    page.locator("[role=option]", has_text="other").click()
    page.wait_for_selector("#dataset-place:has-text('x.png')")
    assert page.inner_text("#dataset-received").strip() == ""
    page.click("#dataset-chosen input")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    open_tab(other, "dataset")
    other.click("#dataset-chosen input")
    other.locator("[role=option]", has_text="other").click()
    other.wait_for_selector("#dataset-place:has-text('x.png')")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#dataset-delete")
    wait_until(page, lambda: not (server.root / "datasets" / "other").exists())
    other.click("#dataset-rename")
    other.wait_for_selector("#dataset-name-problems .problems")
    assert not other.locator("#toasts .toast-body").count()
    assert "list of choices" not in other.inner_text("body")

    # Enter makes the dataset, Esc thinks better of it
    page.click("#dataset-new")
    page.wait_for_function("document.querySelector('#dataset-name')?.contains(document.activeElement)")
    page.keyboard.press("Escape")
    page.wait_for_selector("#dataset-name", state="hidden")
    assert page.evaluate("document.activeElement.id") == "dataset-new"
    page.click("#dataset-new")
    enter(page, "#dataset-name input", "by enter")
    page.keyboard.press("Enter")
    wait_until(page, lambda: (server.root / "datasets" / "by enter").is_dir())
    assert not [each for each in page.complaints if "cancelled" not in each]
