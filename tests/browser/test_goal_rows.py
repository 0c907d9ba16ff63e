"""What a person does less often: lay runs over each other, keep a mix as a file, a second pass, end it half-way."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import enter, open_tab, settle, wait_until
from PIL import Image
from test_mix_and_generate import remembered, tags_of, use

from sdlora.events import RunFinished
from sdlora.generation.restore.image_files import read_image_settings
from tests.support.emoji_adapters import random_adapter
from tests.support.told_runs import DEMO, made, started, step, told

CANCELLED = re.compile(r"(\d+) images? in [\d.]+ s, then cancelled \((\d+) were asked for\)")


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with two adapters, and two finished runs that differ in rank and learning rate."""
    root = tmp_path_factory.mktemp("studio") / "root"
    for number, name in enumerate(("ink", "wash"), 1):
        random_adapter(root / "adapters" / f"{name}.safetensors", number)
    for name, rank, rate, falls in (("careful", 4, 0.0001, 0.001), ("bold", 16, 0.002, 0.003)):
        changed = {
            "adapter": DEMO.adapter.model_copy(update={"rank": rank}),
            "optimization": DEMO.optimization.model_copy(update={"learning_rate": rate}),
        }
        run = made(root / "runs", name, **changed)
        told(run, started(60), *(step(number, 0.3 - falls * number) for number in range(1, 61)))
        told(run, RunFinished(step=60, reason="completed", adapter_path="x.safetensors", seconds=1.0))
    return start_server(root)


@pytest.fixture(scope="module")
def studio(server: Any, lasting_page: Callable[..., Any]) -> Any:
    """One window for all of this: to load it takes as long as a test."""
    return lasting_page(server, "/#runs/bold")


def test_two_runs_are_laid_over_each_other_and_the_settings_that_differ_are_named(studio: Any) -> None:
    page = studio
    page.click("#runs-view-compare-button")
    page.wait_for_selector("#runs-compared:has-text('Choose two or more runs')")
    for name in ("careful", "bold"):
        page.click("#runs-compare input")
        page.locator("#runs-compare [role=option]", has_text=name).click()
    page.keyboard.press("Escape")
    chart = page.locator("#runs-compared svg[role=img]")
    chart.wait_for()
    assert page.locator("#runs-compared .legend span").all_inner_texts() == ["careful", "bold"]
    lines = chart.locator("polyline.curve-smooth")
    boxes = [lines.nth(index).bounding_box() for index in range(lines.count())]
    assert len(boxes) == 2
    assert all(box["width"] > 300 for box in boxes)
    assert boxes[1]["height"] > boxes[0]["height"], "the loss of bold falls faster"
    looks = {lines.nth(index).evaluate("(line) => getComputedStyle(line).stroke") for index in range(2)}
    assert len(looks) == 2, "both lines have one colour"
    for words in ("Loss of careful: 0.2400 at step 60", "Loss of bold: 0.1200 at step 60"):
        assert words in chart.get_attribute("aria-label")

    table = page.locator("#runs-compared table").first
    assert table.locator("thead th").all_inner_texts() == ["careful", "bold"]
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()
    }
    assert rows.pop("name") == ["careful", "bold"]
    assert rows == {"adapter.rank": ["4", "16"], "optimization.learning_rate": ["0.0001", "0.002"]}
    assert not page.complaints


def test_a_mix_is_kept_as_a_file_and_loaded_again(server: Any, studio: Any, tmp_path: Path) -> None:
    page = studio
    open_tab(page, "mix")
    use(page, "wash", 1)
    use(page, "ink", 2)
    enter(page, "#mix-tags textarea", "<lora:wash:-0.7> <lora:ink:te=0.25:unet=0.5>")
    page.locator("#mix-tags textarea").blur()
    wait_until(page, lambda: page.locator("#mix-row-2-weight input").input_value() == "0.5")
    page.click("#mix-row-1-more summary")
    blocks = page.locator("#mix-row-1-blocks input")
    blocks.fill("OUTALL")
    blocks.press("Tab")
    wait_until(page, lambda: remembered(server, "mix.rows")[0]["blocks"] == "OUTALL")
    before = remembered(server, "mix.rows")

    page.click("#mix-saved-panel button.label-wrap")
    enter(page, "#mix-save-name input", "evening")
    page.click("#mix-save")
    file = server.root / "mixes" / "evening.yaml"
    wait_until(page, file.is_file)
    assert file.stat().st_size < 1000
    for row in (1, 2):
        page.click(f"#mix-row-{row}-remove")
        page.wait_for_selector(f"#mix-row-{row}", state="detached")
    wait_until(page, lambda: remembered(server, "mix.rows") == [])

    load(page, "evening")
    wait_until(page, lambda: tags_of(page) == "<lora:wash:-0.7> <lora:ink:0.25:0.5>")
    assert page.input_value("#mix-row-1-weight input") == "-0.7"
    assert page.input_value("#mix-row-1-blocks input") == "OUTALL"
    assert page.input_value("#mix-row-2-te input") == "0.25"
    assert remembered(server, "mix.rows") == before
    assert not page.locator("#mix-saved-problems").inner_text().strip()

    # one of its adapters goes away: it is named, and the other one is there
    shutil.move(server.root / "adapters" / "wash.safetensors", tmp_path)
    page.click("#mix-refresh")
    load(page, "evening")
    page.wait_for_selector("#mix-saved-problems:has-text('wash.safetensors is gone')")
    wait_until(page, lambda: tags_of(page) == "<lora:ink:0.25:0.5>")
    shutil.move(tmp_path / "wash.safetensors", server.root / "adapters")
    page.click("#mix-row-1-remove")
    page.wait_for_selector("#mix-row-1", state="detached")
    assert not page.complaints


def load(page: Any, name: str) -> None:
    page.click("#mix-saved input")
    page.locator("#mix-saved [role=option]", has_text=name).click()
    page.click("#mix-load")


def test_a_second_pass_gives_a_larger_picture_which_tells_of_it(server: Any, studio: Any) -> None:
    page = studio
    open_tab(page, "generate")
    enter(page, "#generate-prompt textarea", "a red fox")
    number(page, "steps", "2")
    small = generate(page, server)
    page.click("#generate-section-second_pass button.label-wrap")
    second = {"scale": "2", "strength": "0.6", "steps": "3"}
    for name, value in second.items():
        number(page, f"second_pass-{name}", value)
    page.click("#generate-second_pass-upscaler input")
    page.locator("#generate-second_pass-upscaler [role=option]", has_text="latent").click()
    wait_until(page, lambda: remembered(server, "generate.second_pass.upscaler") == "latent")
    large = generate(page, server)
    with Image.open(small) as first, Image.open(large) as image:
        assert image.size == (2 * first.width, 2 * first.height)
        assert "Hires upscale: 2, Hires steps: 3" in image.text["parameters"]
    recorded = read_image_settings(large)
    assert recorded.by_sdlora
    assert recorded.values["second_pass"] == {"scale": 2.0, "strength": 0.6, "steps": 3, "upscaler": "latent"}
    shown = page.locator("#generate-gallery img").first
    wait_until(page, lambda: shown.evaluate("(picture) => picture.naturalWidth") == image.width)

    # restored from the older picture it is off again, from the newer one on
    page.click("#generate-history-tab-button")
    for path, scale in ((small, "1"), (large, "2")):
        page.locator("#generate-history .thumbnail-item", has_text=path.stem).click()
        page.wait_for_selector(f"#generate-picture img[src*='{path.stem}']")
        page.click("#generate-restore-all")
        page.wait_for_selector("#generate-notes:has-text('Everything was taken over.')")
        wait_until(page, lambda scale=scale: page.input_value("#generate-second_pass-scale input") == scale)
    assert {name: page.input_value(f"#generate-second_pass-{name} input") for name in second} == second
    assert page.input_value("#generate-second_pass-upscaler input") == "latent"
    number(page, "second_pass-scale", "1")  # for whoever has the window next
    assert not page.complaints


def test_what_is_generated_is_seen_and_cancel_keeps_the_finished_images(server: Any, studio: Any) -> None:
    page = studio
    open_tab(page, "generate")
    enter(page, "#generate-prompt textarea", "a blue bird")
    before = images(server)
    number(page, "steps", "20")
    number(page, "num_images", "30")
    page.click("#generate-history-tab-button")
    page.click("#generate-go")  # what comes of it is put in front
    unfinished = page.locator("#generate-progress img.unfinished")
    unfinished.wait_for()
    assert unfinished.evaluate("(picture) => picture.naturalWidth") > 0
    seen = unfinished.get_attribute("src")
    page.wait_for_function(
        "(seen) => ![seen, undefined].includes(document.querySelector('.unfinished')?.src)", arg=seen
    )
    page.locator("#generate-gallery .thumbnail-item").nth(1).wait_for()
    page.click("#generate-cancel")
    page.wait_for_selector("#generate-progress .progress-words:has-text('then cancelled')")
    done, asked = CANCELLED.search(page.inner_text("#generate-progress .progress-words")).groups()
    assert asked == "30"
    assert 2 <= int(done) < 30
    wait_until(page, lambda: page.locator("#generate-gallery .thumbnail-item").count() == int(done))
    kept = images(server) - before
    assert len(kept) == int(done)
    for path in kept:
        with Image.open(path) as image:
            image.load()
    assert unfinished.count() == 0
    assert page.is_hidden("#generate-cancel")
    assert not page.complaints


def test_a_page_is_not_left_unasked_before_the_server_has_what_was_typed(server: Any, studio: Any) -> None:
    page = studio
    open_tab(page, "train")
    asked: list[str] = []

    def stay(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    under_way: list[Any] = []
    # A slow connection: they arrive once they are let go.
    page.route("**/gradio_api/run/**", lambda route: under_way.append(route))
    enter(page, "#train-name textarea", "abc")
    page.evaluate("location.reload()")
    wait_until(page, lambda: bool(asked))
    assert asked == ["beforeunload"]
    for request in under_way:
        request.continue_()
    page.unroute("**/gradio_api/run/**")
    settle(page)
    wait_until(page, lambda: (remembered(server, "train.form") or {}).get("name") == "abc")
    settle(page)
    page.reload()  # all is there: no question
    page.wait_for_selector("body[data-ready]")
    assert page.input_value("#train-name textarea") == "abc"
    assert len(asked) == 1
    page.remove_listener("dialog", stay)


def number(page: Any, name: str, value: str) -> None:
    enter(page, f"#generate-{name} input", value)
    page.keyboard.press("Tab")


def generate(page: Any, server: Any) -> Path:
    """Press Generate, and wait until the page shows the picture."""
    before = images(server)
    page.click("#generate-go")
    wait_until(page, lambda: len(images(server) - before) == 1)
    (path,) = images(server) - before
    page.wait_for_selector(f'#generate-gallery [data-tile="{path}"] img')
    return path


def images(server: Any) -> set[Path]:
    return set(server.root.glob("outputs/*/*.png"))
