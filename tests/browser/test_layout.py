"""How the page is laid out: widths, one type scale, what lies beside what; Home; sides in a ratio that is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import enter, open_tab, reload, settle, wait_until
from PIL import Image
from test_page import violations

from sdlora.data.sets import folders

TABS = ("home", "dataset", "train", "runs", "mix", "generate", "settings")
SIZES = """() => {
  const sizes = {};
  for (const element of document.querySelectorAll('.gradio-container *')) {
    if (element.closest('svg, footer') || !element.getClientRects().length) continue;
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (hasText || element.matches('input:not([type=file]), textarea'))
      sizes[getComputedStyle(element).fontSize] = element.outerHTML.slice(0, 120);
  }
  return sizes;
}"""
CLIPPED = """() => [...document.querySelectorAll('#tabs button:not(.label-wrap), #tabs label > span, #tabs th')]
  .filter((element) => element.getClientRects().length && element.scrollWidth > element.clientWidth + 1)
  .filter((element) => getComputedStyle(element).display !== 'inline')
  .filter((element) => getComputedStyle(element).textOverflow !== 'ellipsis')
  .map((element) => element.textContent.trim().slice(0, 60) + ' in ' + element.closest('[id]')?.id)"""
"""Buttons and labels whose words don't fit into them."""


CUT_OFF = """() => [...document.querySelectorAll('#tabs .wide-table button')].filter((button) =>
  button.getClientRects().length
  && button.getBoundingClientRect().right > button.closest('.wide-table').getBoundingClientRect().right + 1)
  .map((button) => button.textContent + ' in ' + button.closest('[id]')?.id)"""
"""Buttons of a table that begin or end beside what is seen of it."""


@pytest.fixture(scope="module")
def filled(server: Any) -> Path:
    """A dataset to look at."""
    return folders.add_sample(server.root / "datasets")


@pytest.fixture(scope="module")
def window(filled: Path, server: Any, lasting_page: Callable[..., Any]) -> Any:
    """One window for all of this file."""
    return lasting_page(server)


@pytest.fixture
def page(window: Any) -> Any:
    """The window, as wide as ever."""
    window.set_viewport_size({"width": 1280, "height": 900})
    return window


def box(page: Any, selector: str) -> dict[str, float]:
    found: dict[str, float] = page.locator(selector).first.bounding_box()
    return found


@pytest.mark.timeout(900)
def test_every_tab_fits_every_width_with_four_sizes_of_type(page: Any) -> None:
    sizes: dict[str, str] = {}
    for tab in TABS:
        open_tab(page, tab)
        for width in (2560, 1400, 1024, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab, width)
            assert not page.evaluate(CLIPPED), (tab, width)
        sizes |= page.evaluate(SIZES)
        page.set_viewport_size({"width": 1280, "height": 900})
    assert len(sizes) <= 4, sizes


@pytest.mark.timeout(900)
def test_parts_lie_beside_each_other_where_there_is_room(page: Any) -> None:
    parts = {
        "train": ("#train-preset", "#train-search", "#train-summary"),
        "mix": ("#mix-search", "#mix-tags", "#mix-compare-panel"),
        "generate": ("#generate-prompt", "#generate-sampler", "#generate-views"),
    }
    page.set_viewport_size({"width": 2560, "height": 1000})
    for tab, (first, second, third) in parts.items():
        open_tab(page, tab)
        left, middle, right = (box(page, selector) for selector in (first, second, third))
        assert left["x"] + left["width"] < middle["x"] < middle["x"] + middle["width"] < right["x"], tab
        assert left["x"] < 60 < 2440 < right["x"] + right["width"], f"{tab} does not use the window's width"
    page.set_viewport_size({"width": 1400, "height": 900})
    prompt, results, more = (box(page, selector) for selector in (*parts["generate"][::2], "#generate-sampler"))
    assert prompt["x"] + prompt["width"] < results["x"]
    assert abs(results["y"] - prompt["y"]) < 120
    assert more["y"] > prompt["y"] + prompt["height"]
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert box(page, "#generate-views")["y"] > box(page, "#generate-prompt")["y"]
    go = box(page, "#generate-go")  # in reach without scrolling
    assert go["y"] + go["height"] <= 844
    open_tab(page, "dataset")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_selector("#dataset-caption textarea")
    page.wait_for_timeout(300)
    assert box(page, "#dataset-picture figure")["y"] < box(page, "#dataset-caption textarea")["y"] < 860


@pytest.mark.timeout(900)
def test_what_is_wrong_can_be_read_at_every_width_in_light_and_dark(page: Any, server: Any) -> None:
    picture = server.root / "datasets" / "bare" / "10_sks dog" / "a.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (300, 200), "teal").save(picture)
    page.emulate_media(reduced_motion="reduce")

    def look(tab: str) -> None:
        for width in (2560, 1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab, width)
            assert not page.evaluate(CLIPPED), (tab, width)
            assert not page.evaluate(CUT_OFF), (tab, width)
        for theme in ("dark", "light"):
            page.evaluate("(theme) => window.sdloraTheme(theme)", theme)
            page.wait_for_timeout(300)
            assert not violations(page, "color-contrast"), (tab, theme)
        page.set_viewport_size({"width": 1280, "height": 900})

    open_tab(page, "dataset")
    page.evaluate("location.hash = 'dataset/bare'")
    page.wait_for_selector("#dataset-summary button.bad:has-text('1 without caption')")
    page.locator("#dataset-tokens").filter(has_text="the folder's name: “sks dog”").wait_for()
    look("dataset")
    open_tab(page, "train")
    page.wait_for_selector("#train-start:not([disabled])")
    enter(page, "#train-optimization-learning_rate input", "-1")
    page.keyboard.press("Tab")
    enter(page, "#train-name :is(textarea, input)", "a name with a slash / in it")
    page.wait_for_selector("#train-problems:has-text('2 problems')")
    page.wait_for_selector("#train-differences [data-reset='name']")
    look("train")
    page.click("#train-reset")
    page.wait_for_selector("#train-start:not([disabled])")


def test_one_side_follows_the_other_while_the_ratio_is_kept(page: Any) -> None:
    open_tab(page, "generate")
    sides = [page.locator(f"#generate-{side}_px input") for side in ("width", "height")]

    def shown() -> list[str]:
        return [side.input_value() for side in sides]

    enter(page, "#generate-width_px input", "768")
    enter(page, "#generate-height_px input", "512")
    enter(page, "#generate-width_px input", "640")
    page.wait_for_timeout(500)
    assert shown() == ["640", "512"], "no side follows while the lock is off"
    enter(page, "#generate-width_px input", "768")
    page.click("#generate-lock input")
    enter(page, "#generate-width_px input", "1536")
    wait_until(page, lambda: shown() == ["1536", "1024"])
    enter(page, "#generate-height_px input", "500")  # to whole multiples of 8
    wait_until(page, lambda: shown() == ["752", "500"])
    settle(page)  # both sides are kept
    reload(page)
    page.wait_for_selector("body[data-ready]")
    wait_until(page, lambda: shown() == ["752", "500"])
    assert page.is_checked("#generate-lock input")


@pytest.mark.timeout(900)
def test_home_leads_to_what_one_was_at(filled: Path, server: Any, new_page: Any) -> None:
    page = new_page(server)
    assert page.is_visible("#dataset-chosen"), "a first visit begins with pictures"
    open_tab(page, "home")
    page.locator("#home-overview").filter(has_text="Set up a run").wait_for()
    page.click("#home-overview a[href='#dataset/sample-mascot']")
    page.wait_for_selector("#dataset-image:has-text('balloon.png')")
    wait_until(page, lambda: page.evaluate("location.hash") == "#dataset/sample-mascot")
    page.go_back()
    page.wait_for_selector("#home-overview a[href='#dataset/sample-mascot']")
    page.goto(f"{server.url}/?again")  # without a place in the address
    page.wait_for_selector("body[data-ready]")
    page.wait_for_selector("#home-overview a[href='#dataset/sample-mascot']")
    # Too narrow for all tabs: the rest is in a menu, and reached by its address all the same.
    page.set_viewport_size({"width": 260, "height": 700})
    page.wait_for_timeout(500)
    assert not page.locator("#tab-settings-button").count()
    page.evaluate("() => { location.hash = '#settings'; }")
    page.wait_for_selector("#settings-versions table")
    assert not page.complaints


def test_a_press_is_answered_by_the_page_itself(page: Any) -> None:
    buttons = {
        "home": (),
        "dataset": ("dataset-new", "dataset-cancel-naming"),
        "train": ("train-reset",),
        "mix": ("mix-refresh", "mix-add", "mix-compare"),
        "generate": ("generate-random", "generate-go"),
        "settings": ("settings-refresh", "settings-prune"),
    }
    press = "(id) => { const one = document.getElementById(id); one.click(); return one.getAttribute('aria-busy'); }"
    for tab, ids in buttons.items():
        open_tab(page, tab)
        for each in ids:
            page.wait_for_selector(f"#{each}:not([disabled])")
            assert page.evaluate(press, each) == "true", f"{each} looks as before until the server has answered"
            page.wait_for_selector(f"#{each}[aria-busy]", state="detached")
