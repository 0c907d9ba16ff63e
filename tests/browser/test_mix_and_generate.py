"""Mix and Generate in the browser: rows, text, sweep and comparison, images, history, settings out of a picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import enter, open_tab, reload, wait_until
from gradio_client import Client
from PIL import Image

from tests.support.emoji_adapters import random_adapter

GENERATED = "#generate-progress .progress-words:text-matches(' in [0-9.]+ s')"
"""What stands above the result of a request that is over."""


@pytest.fixture(scope="module")
def server(browser: Any, start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("studio") / "root"
    random_adapter(root / "adapters" / "ink.safetensors", 1, trigger="ink style")
    wash = random_adapter(root / "adapters" / "wash.safetensors", 2, rank=4)
    wash.with_suffix(".json").write_text('{"preferred weight": 0.7, "activation text": "wtrclr"}', encoding="utf-8")
    return start_server(root)


def use(page: Any, name: str, row: int) -> None:
    """Put an adapter of the library into use by its picture."""
    page.locator("#mix-library .thumbnail-item", has_text=name).click()
    page.wait_for_selector(f"#mix-card h4:has-text('{name}')")
    page.click("#mix-add")
    page.wait_for_selector(f"#mix-row-{row}")


def remembered(server: Any, name: str) -> Any:
    return json.loads((server.root / ".webui" / "state.json").read_text(encoding="utf-8")).get(name)


def tags_of(page: Any) -> str:
    return str(page.locator("#mix-tags textarea").input_value())


def mix_two(page: Any) -> None:
    """Rows by pictures, numbers, text; the order; a mistake in the text."""
    use(page, "wash", 1)
    use(page, "ink", 2)
    wait_until(page, lambda: tags_of(page) == "<lora:wash:0.7> <lora:ink:1>")
    weight = page.locator("#mix-row-2-weight input")
    weight.fill("-2.5")
    weight.press("Tab")
    wait_until(page, lambda: "<lora:ink:-2.5>" in tags_of(page))
    page.click("#mix-row-2-up")
    wait_until(page, lambda: tags_of(page) == "<lora:ink:-2.5> <lora:wash:0.7>")
    enter(page, "#mix-tags textarea", "<lora:ink:te=0.25:unet=0.5> <lora:wash:0.6> <lora:nobody:1>")
    page.keyboard.press("Control+Enter")
    page.locator("#mix-tags textarea").blur()
    page.wait_for_selector("#mix-problems:has-text('<lora:nobody:1>: no adapter of that name is in the library')")
    enter(page, "#mix-tags textarea", "<lora:ink:te=0.25:unet=0.5> <lora:wash:0.6>")
    page.locator("#mix-tags textarea").blur()
    wait_until(page, lambda: page.locator("#mix-row-2-weight input").input_value() == "0.5")
    page.wait_for_selector("#mix-problems .problems", state="detached")


def test_mix_generate_restore_and_compare(page: Any, server: Any, tmp_path: Path) -> None:
    open_tab(page, "mix")
    mix_two(page)

    open_tab(page, "generate")
    page.wait_for_selector("#generate-row-1")  # the rows are shared
    enter(page, "#generate-prompt textarea", "a red fox")
    page.wait_for_selector("#generate-prompt-tokens:has-text('3 of 75 tokens')")
    for field, value in (("steps", "4"), ("seed", "7"), ("num_images", "2")):
        enter(page, f"#generate-{field} input", value)
        page.keyboard.press("Tab")
    wait_until(page, lambda: remembered(server, "generate.num_images") == 2)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#generate-cancel:not([disabled])")
    reload(page)  # a page that is loaded anew finds its request again
    page.wait_for_selector(GENERATED)
    wait_until(page, lambda: page.locator("#generate-gallery .thumbnail-item").count() == 2)
    files = sorted(server.root.glob("outputs/*/*.png"))
    assert [path.stem.rpartition("-")[2] for path in files] == ["7", "8"]
    with Image.open(files[1]) as image:
        assert "<lora:ink:0.25:0.5>" in image.text["parameters"]

    # all settings of a picture that is dropped, into a page that shows others
    dropped = Path(shutil.copyfile(files[1], tmp_path / "other name.png"))
    enter(page, "#generate-prompt textarea", "something else")
    page.click("#generate-picture-tab-button")
    page.locator("#generate-drop input[type=file]").set_input_files(dropped)
    page.wait_for_selector("#generate-text textarea")
    wait_until(page, lambda: "Steps: 4" in page.locator("#generate-text textarea").input_value())
    page.click("#generate-restore-all")
    page.wait_for_selector("#generate-notes:has-text('Everything was taken over.')")
    assert page.locator("#generate-prompt textarea").input_value() == "a red fox"
    assert page.locator("#generate-seed input").input_value() == "8"
    assert [row["weight"] for row in remembered(server, "mix.rows")] == [0.5, 0.6]

    # none, each, together; the sheet is shown where it was asked for
    open_tab(page, "mix")
    page.click("#mix-compare")
    page.wait_for_selector("#mix-sheet img")
    assert len(list(server.root.glob("outputs/*/grid-0001/x*.png"))) == 4

    # export: what is wrong stays on the page (test_journey.py exports)
    page.click("#mix-export-panel button.label-wrap")
    page.click("#mix-export")
    page.wait_for_selector("#mix-export-problems:has-text('give a name')")
    assert not page.complaints
    assert not page.elsewhere


def test_programs_mix_and_generate(server: Any) -> None:
    client = Client(server.url, verbose=False)
    mixed = client.predict(["ink:0.5", "wash:unet=0.25,te=0"], "from a program", "svd", 4, 0.0, api_name="/mix")
    assert Path(mixed["adapter"]).is_file()
    assert "relative error" in mixed["output"]
    generated = client.predict("a cat", ["from a program"], {"steps": 2, "seed": 3}, api_name="/generate")
    assert generated["seeds"] == [3]
    assert Path(generated["images"][0]).is_file()
    with pytest.raises(Exception, match="no adapter of that name is in the library"):
        client.predict("a cat", ["nobody"], {}, api_name="/generate")
