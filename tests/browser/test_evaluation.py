"""A run's evaluation in the browser: found, followed, refused, promoted; and from an image that stands out to its
caption."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import enter, reload, settle, wait_until
from test_page import PHONE, WINDOW, violations

from sdlora.adapters.files.container import content_hash
from sdlora.config.shipped import sample_images_folder
from sdlora.data.sets import folders
from sdlora.launch.runs import RunHandle
from tests.support.evaluated_run import evaluate, running_job, trained_run


@pytest.fixture
def run(server: Any) -> RunHandle:
    """A finished run that was evaluated on the command line, on a dataset of the page."""
    dataset = folders.add_sample(server.root / "datasets")
    run = trained_run(server.root / "runs")
    evaluate(run, sorted(dataset.glob("*.png"))[3])
    return run


@pytest.fixture
def running(server: Any, run: RunHandle) -> Iterator[RunHandle]:
    """Another run, whose evaluation is under way."""
    other = trained_run(server.root / "runs", "dogs")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    running_job(server.root / ".webui" / "jobs", other, process.pid)
    yield other
    process.kill()
    process.wait()


@pytest.mark.timeout(600)
def test_an_evaluation_is_shown_followed_refused_and_promoted(
    run: RunHandle, running: RunHandle, server: Any, new_page: Any
) -> None:
    page = new_page(server, "/#runs/cats")
    page.emulate_media(reduced_motion="reduce")
    page.click("#runs-outcome [data-act=evaluate]")
    page.locator("#runs-evaluate-state").filter(has_text="Evaluated on").wait_for()
    page.locator("#runs-evaluation .advice h3").filter(has_text="Take step 10").wait_for()
    for size, theme in ((PHONE, "dark"), (WINDOW, "light")):
        page.set_viewport_size(size)
        page.evaluate("(theme) => window.sdloraTheme(theme)", theme)
        page.wait_for_timeout(300)
        assert not violations(page), theme
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.locator("#runs-evaluation .point").nth(1).hover()
    page.locator("#runs-evaluation .point").nth(1).locator("img").wait_for(state="visible")

    page.click("#runs-evaluation .advice [data-act=promote]")
    page.locator("#runs-evaluation .advice").filter(has_text="what it was before lies in former/step_000020").wait_for()
    assert content_hash(run.files.adapter("cats")) == content_hash(
        run.files.checkpoint(10) / "cats-step_000010.safetensors"
    )
    assert not page.locator(".toast-body").count()

    page.click("#runs-evaluate-settings button.label-wrap")
    enter(page, "#runs-evaluate-lines textarea", "sedes=3")
    page.click("#runs-evaluate")
    page.locator("#runs-evaluate-problems[role=alert], #runs-evaluate-problems [role=alert]").filter(
        has_text=re.compile("did you mean 'seed'")
    ).wait_for()

    page.click("#runs-list [data-run=dogs]")
    page.locator("#runs-evaluate-state").filter(has_text="Generating images: 3 of 8").wait_for()
    assert not page.locator("#runs-evaluate-problems .problems").count()
    wait_until(page, lambda: page.url.endswith("#runs/dogs"))  # or the page that is loaded anew is of the other run
    reload(page)
    page.wait_for_selector("body[data-ready]")
    settle(page)
    page.click("#runs-outcome [data-act=evaluate]")
    page.click("#runs-evaluate-cancel")
    page.locator("#runs-evaluate-state").filter(has_text="cancelled; what was written stays").wait_for()

    page.click("#runs-list [data-run=cats]")
    page.click("#runs-evaluation [data-image]")
    page.locator("#dataset-image").filter(has_text=sorted(sample_names())[3]).wait_for()
    assert not page.complaints


def sample_names() -> list[str]:
    """The images of the sample dataset."""
    return [path.name for path in Path(sample_images_folder() / "mascot").glob("*.png")]
