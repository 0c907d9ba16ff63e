"""What is typed while the server is away is there once it is back; what is pressed meanwhile is said to be lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import enter, open_tab, settle, wait_until
from PIL import Image


@pytest.fixture
def server(start_server: Callable[..., Any], tmp_path: Path) -> Any:
    """A server of its own, with a dataset of one picture."""
    folder = tmp_path / "root" / "datasets" / "fox"
    folder.mkdir(parents=True)
    Image.new("RGB", (96, 96), "orange").save(folder / "a.png")
    (folder / "a.txt").write_text("a fox", encoding="utf-8")
    return start_server(tmp_path / "root")


def value(page: Any, selector: str) -> str:
    return str(page.locator(f"{selector} :is(input, textarea)").first.input_value())


def test_what_is_typed_while_the_server_is_away_is_saved_once_it_is_back(new_page: Any, server: Any) -> None:
    page = new_page(server, "/#dataset/fox")
    page.locator("#dataset-gallery [data-tile]").first.click()
    wait_until(page, lambda: value(page, "#dataset-caption") == "a fox")
    settle(page)
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    server.interrupt()
    for text in ("a red fox", "a red fox in snow"):
        enter(page, "#dataset-caption textarea", text)
    page.wait_for_selector(".toast-body:has-text('What you type stays here')")
    open_tab(page, "train")
    enter(page, "#train-optimization-steps input", "77")
    open_tab(page, "generate")
    enter(page, "#generate-prompt textarea", "a castle")
    page.click("#generate-go")
    page.wait_for_selector(".toast-body:has-text('what you pressed was not done')")
    page.evaluate("() => { window.isOld = true; }")
    server.start()
    page.wait_for_function("() => !window.isOld")
    page.wait_for_selector("body[data-ready]")
    settle(page)
    assert not asked, "nothing was left to be lost"
    assert value(page, "#generate-prompt") == "a castle"
    open_tab(page, "train")
    assert value(page, "#train-optimization-steps") == "77"
    assert (server.root / "datasets" / "fox" / "a.txt").read_text(encoding="utf-8").strip() == "a red fox in snow"
    assert not list((server.root / "outputs").rglob("*.png")), "a press that was said to be lost was done later"
