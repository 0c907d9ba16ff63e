"""From a preset to a finished run in the page: problems, one run a press, curves, reload, stop, resume, crash."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import enter, open_tab, reload, wait_until
from PIL import Image

from sdlora.config.files import parse_yaml
from sdlora.launch.runs import list_runs
from tests.support.documents import PROJECT, blocks

SMALL = """
name: small
images: {folder: "builtin:blueprint", resolution: 64}
captions: {trigger: blueprint style}
adapter: {rank: 2, layers: attention}
optimization: {steps: 5000, precision: fp32, learning_rate: 0.001, threads: 1}
validation: {fraction: 0.1, every: 1000}
previews: {prompts: [a cat face], every: 10, steps: 2, guidance: 1.0}
outputs: {checkpoint_every: 25, keep_checkpoints: 1, self_test: false}
"""
TRAINING_SECONDS = 300_000


@pytest.fixture
def no_trainer_left(server: Any) -> Iterator[None]:
    """Ends what a failing test leaves behind: trainers outlive the server."""
    yield
    for run in list_runs(server.root / "runs"):
        run.kill(grace_seconds=1.0)


def trainer(runs: Path, name: str) -> int:
    """Process id of the run's trainer."""
    return int(json.loads((runs / name / "process.json").read_text(encoding="utf-8"))["process_id"])


def step(page: Any) -> int:
    """How many steps the page says are done."""
    return int(page.inner_text("#runs-figures .run-progress-text").split("/")[0].replace(",", ""))


def wait_for_status(page: Any, status: str) -> None:
    page.wait_for_selector(f"#runs-status .badge.{status}", timeout=TRAINING_SECONDS)


def wait_for_more_steps(page: Any) -> None:
    """Until the number of steps on the page has grown."""
    before, deadline = step(page), time.monotonic() + TRAINING_SECONDS / 1000
    while step(page) <= before:
        assert time.monotonic() < deadline, f"the run stays at step {before}"
        page.wait_for_timeout(200)


def test_problems_are_listed_and_lead_to_their_fields(page: Any) -> None:
    open_tab(page, "train")
    page.wait_for_selector("#train-start:not([disabled])")
    enter(page, "#train-search textarea", "of linear lay")
    page.wait_for_selector("#train-adapter-rank input")
    page.fill("#train-adapter-rank input", "0")
    page.press("#train-adapter-rank input", "Tab")
    page.wait_for_selector("#train-problems [role=alert] .problems")
    enter(page, "#train-name textarea", "no/slash")
    page.get_by_text("'no/slash' can't be used as a name").wait_for()
    panel = page.inner_text("#train-problems")
    assert "2 problems to fix first" in panel
    assert "adapter.rank: 0 leaves nothing to train; give a rank of 1 or more, or new_tokens" in panel
    assert page.is_disabled("#train-start")
    assert page.is_disabled("#train-enqueue")
    page.click("#train-problems li:has-text('adapter.rank') button")
    page.wait_for_function("document.activeElement.closest('#train-adapter-rank') !== null")

    reload(page)  # what was typed is there again, and so are its problems
    page.get_by_text("2 problems to fix first").wait_for()
    assert page.input_value("#train-name textarea") == "no/slash"
    page.click("#train-differences button[data-reset='adapter.rank']")
    page.get_by_text("1 problem to fix first").wait_for()
    page.click("#train-reset")
    page.wait_for_selector("#train-start:not([disabled])")
    assert page.input_value("#train-name textarea") == "blueprint-demo"
    assert page.input_value("#train-command textarea").startswith("sdlora train --preset demo.yaml")
    assert not page.complaints


@pytest.mark.timeout(900)
def test_a_run_is_watched_stopped_resumed_and_survives_the_server(
    server: Any, page: Any, new_page: Any, no_trainer_left: None
) -> None:
    runs = server.root / "runs"
    open_tab(page, "train")
    page.click("#train-yaml-box > button")
    page.wait_for_function("document.querySelector('#train-yaml textarea')?.value.includes('blueprint')")
    page.fill("#train-yaml textarea", "adapter: {rnak: 4}")
    page.click("#train-yaml-apply")
    page.get_by_text("did you mean 'rank'").wait_for()
    page.fill("#train-yaml textarea", SMALL)
    page.click("#train-yaml-apply")
    page.wait_for_function("document.querySelector('#train-name textarea').value === 'small'")
    page.wait_for_selector("#train-start:not([disabled])")
    page.dblclick("#train-start")
    wait_for_status(page, "running")
    assert [path.name for path in runs.iterdir() if path.is_dir()] == ["small"]

    page.wait_for_selector("#runs-chart svg[role=img] .curve-smooth", timeout=TRAINING_SECONDS)
    wait_for_more_steps(page)
    page.click("#runs-view-previews-button")
    page.locator("#runs-grid td img").nth(1).wait_for(timeout=TRAINING_SECONDS)
    page.wait_for_selector("#runs-pair input[type=range]")
    pictures_asked_for(page)

    reload(page)
    wait_for_status(page, "running")  # the tab and the run are there again
    wait_for_more_steps(page)
    assert page.is_disabled("#runs-delete")
    queued_over_the_api(server, page)

    other = new_page(server, "/?__theme=dark#runs", viewport={"width": 390, "height": 844})
    wait_for_status(other, "running")
    wait_until(other, lambda: other.url.endswith("/?__theme=dark#runs/small"))
    assert other.evaluate("document.documentElement.scrollWidth") <= 390
    in_view = "(id) => { const box = document.getElementById(id).getBoundingClientRect(); return box.bottom <= 844; }"
    assert other.evaluate(in_view, "runs-stop")
    assert other.evaluate(in_view, "runs-status")
    other.click("#runs-stop")
    wait_for_status(page, "stopped")  # also in the first window
    stopped_at = step(page)
    page.click("#runs-view-loss-button")
    zoomed_and_back(page)
    page.click("#runs-view-files-button")
    with page.expect_download() as download:
        page.locator("#runs-files a").first.click()
    assert re.fullmatch(r"small-step_\d+\.safetensors", download.value.suggested_filename)

    page.click("#runs-resume")
    wait_for_status(page, "running")
    wait_for_more_steps(page)
    assert step(page) > stopped_at
    process = trainer(runs, "small")
    server.restart()  # Ctrl-C for the whole group of the server
    os.kill(process, 0)
    wait_for_status(page, "running")
    wait_for_more_steps(page)  # the page that stayed open follows the run again

    os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    page.wait_for_selector("#runs-status .badge.crashed")
    print(f"crashed: shown after {time.monotonic() - began:.1f} s (bar: 5 s)", file=sys.stderr)
    assert page.inner_text("#runs-status .last-error").strip()
    page.wait_for_selector("#runs-resume:not([disabled])")
    page.click("#runs-delete")
    page.get_by_text("Move the run small").wait_for()
    page.click("#runs-yes")
    page.get_by_text("No runs yet").wait_for()
    assert [path for path in (server.root / "trash").iterdir() if path.name.endswith("-small")]
    assert not page.complaints
    assert not page.elsewhere


def test_a_program_trains_and_stops(server: Any, no_trainer_left: None) -> None:
    from gradio_client import Client

    client = Client(server.url, verbose=False)
    settings = ["name=asked", "optimization.steps=5000", "images.resolution=64", "previews.prompts=[]"]
    assert client.predict("demo.yaml", settings, api_name="/train") == "asked"

    def wait_for(reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + TRAINING_SECONDS / 1000
        while not reached(state := client.predict("asked", api_name="/status")):
            assert time.monotonic() < deadline, state
            time.sleep(0.3)
        return state

    wait_for(lambda state: state["step"] > 0)
    assert client.predict("asked", api_name="/stop") == "asked"
    stopped = wait_for(lambda state: state["status"] == "stopped")
    assert 0 < stopped["step"] < 5000
    assert Path(stopped["adapter"]).is_file()
    assert "asked" in [run["run"] for run in client.predict(api_name="/runs")]
    assert client.predict(api_name="/queue") == {"waiting": [], "is_held": False}
    quickly = [
        "num_seeds=1",
        "steps=2",
        "problem_images.enabled=false",
        "prompts.known=[a cat]",
        "prompts.new=[a fox]",
        "prompts.plain=[a dog]",
    ]
    evaluated = client.predict("asked", quickly, api_name="/evaluate")
    assert evaluated["reasons"]
    assert (
        evaluated["checkpoint"] in json.loads(Path(evaluated["report"]).read_text("utf-8"))["recommendation"]["label"]
    )
    with pytest.raises(Exception, match="num_sedes: unknown setting; did you mean 'num_seeds'"):
        client.predict("asked", ["num_sedes=1"], api_name="/evaluate")
    with pytest.raises(Exception, match="not a run folder"):
        client.predict("nobody", api_name="/stop")
    with pytest.raises(Exception, match=r"the call of /train has 1 problem:\s+overrides: input should be a valid list"):
        client.predict("demo.yaml", 7, api_name="/train")


def test_a_program_looks_at_datasets(server: Any) -> None:
    from gradio_client import Client

    client = Client(server.url, verbose=False)
    folder = server.root / "datasets" / "foxes"
    folder.mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (96, 96), (index, 90, 9)).save(folder / f"{index}.png")
    named = [each["folder"] for each in client.predict(api_name="/datasets") if each["name"] == "foxes"]
    assert named == [str(folder)]
    for spelling in (str(folder), "datasets/foxes"):
        rules = {finding["rule"]: finding for finding in client.predict(spelling, api_name="/check")}
        assert len(rules["caption-missing"]["files"]) == 3, rules
    suggested = client.predict("datasets/foxes", "style", "builtin:emoji", 0, "fox style", api_name="/suggest")
    assert parse_yaml(suggested["preset"], "it")["captions"]["trigger"] == "fox style"
    with pytest.raises(Exception, match="subject: input should be 'style', 'person', 'character' or 'concept'"):
        client.predict("datasets/foxes", "dog", api_name="/suggest")
    with pytest.raises(Exception, match="nowhere"):
        client.predict("datasets/nowhere", api_name="/check")


def test_the_program_in_the_guide_trains(
    server: Any, no_trainer_left: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = blocks(PROJECT / "docs" / "guides" / "page.md", "python")
    exec(compile(program.replace("http://127.0.0.1:7860", server.url), "page.md", "exec"), {})
    assert "'run': 'my-fox'" in capsys.readouterr().out


def pictures_asked_for(page: Any) -> None:
    """Two at once, one a line: the trainer draws them between two steps. What was asked for stays in the field."""
    asked = ["a fox at night --d 7", "snow"]
    enter(page, "#runs-draw-prompts textarea", "\n".join([*asked, "snow --zoom 3"]))
    page.click("#runs-draw")
    page.wait_for_selector("#runs-draw-problems:has-text('--zoom is no option')")
    enter(page, "#runs-draw-prompts textarea", "\n".join(asked))
    page.click("#runs-draw")
    page.locator("#runs-asked figure").nth(1).wait_for(timeout=TRAINING_SECONDS)
    shown = [re.sub(r"^step [\d,]+: ", "", words) for words in page.locator("#runs-asked figcaption").all_inner_texts()]
    assert sorted(shown) == sorted(asked)
    assert page.locator("#runs-draw-problems .problems").count() == 0
    assert page.input_value("#runs-draw-prompts textarea") == "\n".join(asked)


def zoomed_and_back(page: Any) -> None:
    """Dragging over the chart shows that stretch of steps, a double press all of them again."""
    chart = page.locator("#runs-chart svg[data-steps]")
    all_steps = chart.get_attribute("data-steps")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.4 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], middle, steps=5)
    page.mouse.up()
    wait_until(page, lambda: page.input_value("#runs-first input") != "0")
    stretch = " ".join(page.input_value(f"#runs-{end} input") for end in ("first", "last"))
    wait_until(page, lambda: chart.get_attribute("data-steps") == stretch)
    assert stretch != all_steps
    chart.dblclick()
    wait_until(page, lambda: chart.get_attribute("data-steps") == all_steps)
    assert [page.input_value(f"#runs-{end} input") for end in ("first", "last")] == ["0", ""]


def queued_over_the_api(server: Any, page: Any) -> None:
    """A program asks for a second run: it waits in the page's queue, and is taken out and deleted there."""
    from gradio_client import Client

    client = Client(server.url, verbose=False)
    name = client.predict("demo.yaml", ["name=second", "optimization.steps=5"], api_name="/train")
    assert name == "second"
    assert client.predict("second", api_name="/status")["status"] == "queued"
    assert client.predict("small", api_name="/status")["total_steps"] == 5000
    page.click("#runs-queue button[aria-label^='Take out'][data-run=second]")
    page.wait_for_selector("#runs-queue .queue", state="detached")
    page.click("#runs-list button[data-run=second]")
    wait_for_status(page, "stopped")
    page.click("#runs-delete")
    page.click("#runs-yes")
    page.wait_for_selector("#runs-list button[data-run=second]", state="detached")
    page.click("#runs-list button[data-run=small]")
    wait_for_status(page, "running")


def test_suggested_settings_are_shown_with_reasons_then_taken(server: Any, page: Any) -> None:
    open_tab(page, "train")
    enter(page, "#train-optimization-steps input", "42")
    page.press("#train-optimization-steps input", "Tab")
    page.click("#train-suggest-box > button")
    page.click("#train-suggest")
    page.get_by_text("150 times is what this kind of training usually takes").wait_for()
    page.wait_for_function("document.querySelector('#train-optimization-steps input').value === '42'")  # shown only
    page.click("#train-suggestion [data-act=use-suggestion]")
    page.wait_for_function("document.querySelector('#train-optimization-steps input').value === '830'")
    assert page.input_value("#train-images-folder input") == "builtin:blueprint"
    page.get_by_text("The form was filled anew").wait_for()
    page.click("#train-aside [data-act=undo]")
    page.wait_for_function("document.querySelector('#train-optimization-steps input').value === '42'")

    # A suggestion is for the pictures it was made from.
    enter(page, "#train-images-folder input", "builtin:mascot")
    page.press("#train-images-folder input", "Tab")
    page.click("#train-suggestion [data-act=use-suggestion]")
    page.get_by_text("It is of another dataset: press Suggest settings again").wait_for()
    page.click("#train-suggest-keep-base input")
    enter(page, "#train-suggest-memory input", "0.001")
    page.click("#train-suggest")
    page.get_by_text("Memory: 0.001 GiB is not enough for builtin:emoji").wait_for()
    assert not list(server.root.glob("**/jobs/*-suggest*")), "a job's folder is left"
    assert not page.complaints
