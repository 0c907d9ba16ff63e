"""The whole way in one browser window: from eight pictures to an adapter, an image and a mixed file; and inpainting."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from browsing import enter, open_tab, reload, wait_until
from PIL import Image

from sdlora.config.shipped import sample_images_folder
from sdlora.launch.runs import list_runs

LONG = 300_000


@pytest.fixture(autouse=True)
def no_trainer_left(server: Any) -> Any:
    yield
    for run in list_runs(server.root / "runs"):
        run.kill(grace_seconds=1.0)


def step(page: Any) -> int:
    """How many steps the page says are done."""
    return int(page.inner_text("#runs-figures .run-progress-text").split("/")[0].replace(",", ""))


def set_advanced(page: Any, words: str, field: str, value: str) -> None:
    """Find a setting by words, then fill it in."""
    enter(page, "#train-search textarea", words)
    field_input = f"#train-{field} :is(input, textarea)"
    page.wait_for_selector(field_input)
    page.fill(field_input, value)
    page.press(field_input, "Tab")
    page.wait_for_selector(f"#train-differences button[data-reset='{field.replace('-', '.', 1).replace('-', '_')}']")


def upload_and_caption(page: Any, server: Any) -> None:
    """Eight pictures without captions get the same one, in one edit."""
    page.click("#dataset-new")
    enter(page, "#dataset-name input", "drawings")
    page.click("#dataset-create")
    page.locator("#dataset-empty").filter(has_text="'drawings' is empty").wait_for()
    pictures = sorted((sample_images_folder() / "blueprint").glob("*.png"))[:8]
    page.set_input_files("#dataset-upload input[type=file]", pictures)
    page.locator("#dataset-summary").filter(has_text="8 without caption").wait_for()
    page.click("#dataset-bulk-box button.label-wrap")
    enter(page, "#dataset-bulk-text input", "zwx style")
    page.click("#dataset-bulk-preview")
    page.locator("#dataset-bulk-result").filter(has_text="8 of 8 captions would change").wait_for()
    page.click("#dataset-bulk-apply")
    page.locator("#dataset-bulk-result").filter(has_text="8 captions changed").wait_for()
    assert len(list((server.root / "datasets" / "drawings").glob("*.txt"))) == 8


def train(page: Any, server: Any) -> None:
    """Thirty steps of a preset, reloaded, stopped and resumed in between."""
    page.click("#dataset-train")
    page.wait_for_selector("#train-images-folder")
    for field, value in (("name", "journey"), ("captions-trigger", "zwx style"), ("previews-prompts", "a cat face")):
        enter(page, f"#train-{field} textarea", value)
    for field, value in (("optimization-steps", "30"), ("images-resolution", "64")):
        enter(page, f"#train-{field} :is(input, textarea)", value)
    set_advanced(page, "previews every", "previews-every", "5")
    set_advanced(page, "sampling steps", "previews-steps", "2")
    page.wait_for_function("document.querySelector('#train-command textarea').value.includes('steps=30')")
    page.wait_for_selector("#train-start:not([disabled])")
    page.click("#train-start")
    page.wait_for_selector("#runs-status .badge.running", timeout=LONG)
    page.wait_for_selector("#runs-chart svg[role=img] .curve-smooth", timeout=LONG)
    reload(page)
    page.wait_for_selector("#runs-status .badge.running")
    before = step(page)
    wait_until(page, lambda: step(page) > before)
    page.click("#runs-stop")
    page.wait_for_selector("#runs-status .badge.stopped", timeout=LONG)
    assert before < step(page) < 30
    page.click("#runs-resume")
    page.wait_for_selector("#runs-status .badge.finished", timeout=LONG)
    assert step(page) == 30
    page.click("#runs-view-previews-button")
    page.locator("#runs-grid td img").nth(6).wait_for()  # before training, then every five steps
    assert (server.root / "runs" / "journey" / "journey.safetensors").is_file()


def mix(page: Any, server: Any) -> None:
    """The finished adapter and the one of the stop, a weight each."""
    open_tab(page, "mix")
    page.click("#mix-refresh")
    tiles = page.locator("#mix-library .thumbnail-item", has_text="journey")
    final, stopped = tiles.filter(has_not_text="step_"), tiles.filter(has_text="step_")
    for row, (tile, file) in enumerate(((final, "/journey.safetensors"), (stopped, "/journey-step_")), 1):
        tile.first.click()
        page.wait_for_selector(f"#mix-card .place:has-text('{file}')")
        page.click("#mix-add")
        page.wait_for_selector(f"#mix-row-{row}")
        weight = page.locator(f"#mix-row-{row}-weight input")
        weight.fill(f"0.{9 - row}")
        weight.press("Tab")
    wait_until(page, lambda: ":0.8> <lora:journey-step_" in page.input_value("#mix-tags textarea"))
    wait_until(page, lambda: page.input_value("#mix-tags textarea").endswith(":0.7>"))


def generated_file(page: Any, server: Any) -> Path:
    """Press Generate and wait for the one image."""
    before = set(server.root.glob("outputs/*/*.png"))
    page.click("#generate-go")
    wait_until(page, lambda: len(set(server.root.glob("outputs/*/*.png")) - before) == 1)
    (file,) = set(server.root.glob("outputs/*/*.png")) - before
    return file


def generate(page: Any, server: Any) -> None:
    """An image with both adapters."""
    open_tab(page, "generate")
    page.wait_for_selector("#generate-row-2")
    enter(page, "#generate-prompt textarea", "a cat face, zwx style")
    for field, value in (("steps", "3"), ("seed", "11")):
        enter(page, f"#generate-{field} input", value)
        page.keyboard.press("Tab")
    file = generated_file(page, server)
    with Image.open(file) as image:
        assert "<lora:journey:0.8>" in image.text["parameters"]


def export(page: Any, server: Any) -> None:
    """One adapter file, and a copy of the base model with both baked in."""
    open_tab(page, "mix")
    page.click("#mix-export-panel button.label-wrap")
    for button, name, file in (("export", "both", "both.safetensors"), ("merge", "baked", "baked")):
        enter(page, "#mix-export-name :is(input, textarea)", name)
        page.keyboard.press("Tab")
        page.click(f"#mix-{button}")
        page.wait_for_selector(f"#mix-export-status:has-text('Written: {file}')", timeout=LONG)
    page.wait_for_selector("#mix-library .thumbnail-item:has-text('both')")
    assert (server.root / "adapters" / "both.safetensors").is_file()
    assert (server.root / "models" / "baked" / "model_index.json").is_file()


@pytest.mark.timeout(900)
def test_from_eight_pictures_to_an_exported_mix(page: Any, server: Any) -> None:
    open_tab(page, "dataset")
    upload_and_caption(page, server)
    train(page, server)
    mix(page, server)
    generate(page, server)
    export(page, server)
    assert (page.complaints, page.elsewhere, server.look_ups) == ([], [], [])


@pytest.mark.timeout(600)
def test_only_what_was_painted_over_is_generated_anew(page: Any, server: Any, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.new("RGB", (128, 128), (128, 128, 128)).save(grey)
    open_tab(page, "generate")
    page.click("#generate-start button.label-wrap")
    page.wait_for_selector("#generate-start-editor canvas")  # sooner, the editor loses the picture
    page.wait_for_timeout(1000)
    page.locator("#generate-start-editor input[type=file]").first.set_input_files(grey)
    wait_until(page, lambda: page.is_checked("#generate-start-on input"))
    box = page.locator("#generate-start-editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 10, y)
    page.mouse.down()
    page.mouse.move(x + 10, y, steps=5)
    page.mouse.up()
    enter(page, "#generate-prompt textarea", "a red heart")
    enter(page, "#generate-steps input", "3")
    page.keyboard.press("Tab")
    file = generated_file(page, server)
    with Image.open(file) as image:
        start = json.loads(image.text["sdlora"])["request"]["start"]
        assert image.convert("RGB").getpixel((2, 2)) == (128, 128, 128)
    with Image.open(start["mask"]) as mask:
        assert mask.getbbox() is not None
        assert mask.getpixel((2, 2)) == 0
    page.uncheck("#generate-start-on input")
    page.wait_for_timeout(2500)  # and stays so over the page's polls
    assert not page.is_checked("#generate-start-on input")

    reload(page)
    page.wait_for_selector("body[data-ready]")
    page.click("#generate-start button.label-wrap")
    page.wait_for_selector("#generate-start-editor canvas")
    wait_until(page, lambda: _colour_in_the_middle(page.locator("#generate-start-editor canvas").first) == 128)
    assert not page.complaints


def _colour_in_the_middle(element: Any) -> int:
    with Image.open(BytesIO(element.screenshot())) as image:
        red = image.convert("RGB").getpixel((image.width // 2, image.height // 2))[0]
    return int(red)
