"""What is typed counts for what it was typed for, shows what counts, and isn't left behind without a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browsing import enter, open_tab, reload, settle, wait_until

from sdlora.events import RunFinished
from tests.support.told_runs import made, started, step, told


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with two finished runs."""
    root = tmp_path_factory.mktemp("studio") / "root"
    for name in ("one", "two"):
        told(made(root / "runs", name), started(5), *(step(number) for number in range(1, 6)))
        told(made(root / "runs", name), RunFinished(step=5, reason="completed", adapter_path=None, seconds=1.0))
    return start_server(root)


def test_a_field_never_shows_what_is_not_taken(page: Any, server: Any) -> None:
    page.goto(f"{server.url}/#dataset/50%")  # no percent-encoding: it opens all the same
    page.wait_for_selector("body[data-ready]")
    open_tab(page, "train")
    field = page.locator("#train-optimization-steps input")
    for leave in (lambda: page.keyboard.press("Tab"), lambda: page.click("#train-start")):
        enter(page, "#train-optimization-steps input", "30-")
        leave()
        page.wait_for_selector(".toast-body:has-text('Steps: what was typed is no number, so the field was emptied')")
        assert field.evaluate("(field) => [field.value, field.validity.badInput]") == ["", False]
        page.click(".toast-body button")
        settle(page)
    assert page.is_visible("#tab-train"), "Start began a run with other steps than were shown"
    enter(page, "#train-optimization-steps input", "12")
    page.keyboard.press("Tab")
    assert (field.input_value(), page.locator(".toast-body").count()) == ("12", 0)


def test_yaml_that_is_not_applied_comes_back_with_undo_and_is_not_left_unasked(page: Any, server: Any) -> None:
    page.goto(f"{server.url}/#train")
    page.wait_for_selector("body[data-ready]")
    settle(page)
    page.click("#train-yaml-box > button")
    text = page.locator("#train-yaml textarea")
    text.focus()
    page.keyboard.press("ControlOrMeta+End")
    page.keyboard.type("# mine")
    settle(page)
    page.click("#train-reset")
    page.click("#train-aside button:has-text('Undo')")
    wait_until(page, lambda: str(text.input_value()).endswith("# mine"))
    settle(page)
    assert page.is_disabled("#train-start")
    page.click("#train-yaml-box > button")  # closed, it is there still
    page.wait_for_timeout(1500)
    assert asks_before_it_is_left(page)


def test_changes_for_one_run_are_not_made_to_another(page: Any, server: Any) -> None:
    page.goto(f"{server.url}/#runs/one")
    page.wait_for_selector("#runs-status:has-text('one')")
    page.click("#runs-go-on > button")
    field = page.locator("#runs-go-on-settings textarea")
    enter(page, "#runs-go-on-settings textarea", "optimization.steps=12")
    for run, words in (("two", ""), ("one", "optimization.steps=12")):
        settle(page)
        page.click(f"#runs-list [data-run='{run}']")
        page.wait_for_selector(f"#runs-status:has-text('{run}')")
        wait_until(page, lambda words=words: field.input_value() == words)
    assert asks_before_it_is_left(page)


def test_a_grids_axes_are_there_again_after_a_reload(page: Any, server: Any) -> None:
    page.goto(f"{server.url}/#generate")
    page.wait_for_selector("body[data-ready]")
    page.click("#generate-grid > button")
    page.click("#generate-grid-x input")
    page.click("[role=option]:has-text('Training step of a run')")
    page.wait_for_selector("#generate-grid-run")
    settle(page)
    reload(page)
    page.wait_for_selector("body[data-ready]")
    page.click("#generate-grid > button")
    wait_until(page, lambda: page.input_value("#generate-grid-x input") == "Training step of a run")
    page.wait_for_selector("#generate-grid-run")


def asks_before_it_is_left(page: Any) -> bool:
    """Leave for the page itself, though the browser asks."""
    asked: list[str] = []

    def leave(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", leave)
    page.reload()
    page.remove_listener("dialog", leave)
    return asked == ["beforeunload"]
