"""Steps that many tests of the page take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def open_tab(page: Any, name: str) -> None:
    """Open a tab by its id (`dataset`, `train`, ...) and wait until its panel is there.

    Presses again if the tab that was open last is put in front meanwhile, as a page does once it has loaded.
    """
    panel = page.locator(f"#tab-{name}")
    for _ in range(10):
        page.click(f"#tab-{name}-button")
        try:
            panel.wait_for(state="visible", timeout=3_000)
            page.wait_for_timeout(300)
        except Exception as error:
            if type(error).__name__ != "TimeoutError":
                raise
        if panel.is_visible():
            return
    panel.wait_for(state="visible")


def enter(page: Any, selector: str, text: str) -> None:
    """Replace a field's text by typing: `fill` alone doesn't fire Gradio's `input` event."""
    field = page.locator(selector)
    field.click()
    field.press("ControlOrMeta+a")
    field.press("Delete")
    field.press_sequentially(text)


def settle(page: Any) -> None:
    """Wait until all that the page has asked is answered: a press meanwhile may meet a button that is just replaced."""
    page.evaluate("() => window.sdlora.settled()")
    page.wait_for_function("() => window.sdlora.newsInFlight === 0", polling=20)
    page.wait_for_timeout(300)


def reload(page: Any) -> None:
    """Load the page anew, whether or not it asks first since the server has not got the last keys yet."""

    def leave(dialog: Any) -> None:
        dialog.accept()

    page.evaluate("() => window.sdlora.settled()")
    page.on("dialog", leave)
    page.reload()
    page.remove_listener("dialog", leave)


def stays_when_asked(page: Any) -> bool:
    """Begin to load the page anew, and stay if it asks; returns whether it did."""
    asked: list[str] = []

    def stay(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    page.evaluate("location.reload()")
    page.wait_for_timeout(500)
    page.remove_listener("dialog", stay)
    return asked == ["beforeunload"]


def toast(page: Any) -> str:
    """The text of the message that pops up next."""
    body = page.locator(".toast-body").first
    body.wait_for()
    return str(body.inner_text())


def wait_until(page: Any, condition: Callable[[], bool]) -> None:
    """Until a condition holds, which the page may bring about meanwhile."""
    for _ in range(1200):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not come to that in 120 s")
