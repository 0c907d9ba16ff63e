"""A studio that the page of version 0.1 left behind opens with everything a person had entered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browsing import open_tab, wait_until

from tests.support.released import open_studio


@pytest.fixture(scope="module")
def server(browser: Any, start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return start_server(open_studio("0.1", tmp_path_factory.mktemp("studio") / "root").root)


def test_the_page_shows_what_was_entered_in_0_1(page: Any, server: Any) -> None:
    open_tab(page, "runs")
    page.wait_for_selector("#runs-status .badge.stopped")
    assert page.inner_text("#runs-figures .run-progress-text").startswith("3 / 6")
    page.wait_for_selector("#runs-list button[data-run=ink]")

    open_tab(page, "train")
    for field, value in (("name", "kept-name"), ("captions-trigger", "kept trigger")):
        assert page.input_value(f"#train-{field} textarea") == value
    command = page.input_value("#train-command textarea")
    assert command.startswith("sdlora train --preset demo.yaml")
    for setting in ("adapter.rank=7", "optimization.steps=123", f"images.folder={server.root / 'datasets' / 'shapes'}"):
        assert setting in command.replace("'", "").replace("[", "").replace("]", "")

    open_tab(page, "mix")
    tags = "<lora:ink:0.25:0.5> <lora:wash:-0.6>"
    wait_until(page, lambda: page.input_value("#mix-tags textarea") == tags)
    assert page.input_value("#mix-prompt textarea") == "kept comparison"
    page.click("#mix-row-1-remove")
    page.click("#mix-saved-panel button.label-wrap")
    page.click("#mix-saved input")
    page.get_by_role("option", name="both").click()
    page.click("#mix-load")
    wait_until(page, lambda: page.input_value("#mix-tags textarea") == tags)

    open_tab(page, "generate")
    assert page.input_value("#generate-prompt textarea") == "a red fox, kept prompt"
    assert page.input_value("#generate-seed input") == "7"
    page.click("#generate-history-tab-button")
    page.wait_for_selector("#generate-history-found:has-text('3 images')")

    open_tab(page, "settings")
    assert page.input_value("#settings-adapter-folders textarea") == str(server.root / "more adapters")
    assert page.input_value("#settings-keep-gib input") == "11"
    assert not page.complaints
