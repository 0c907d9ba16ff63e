"""`sdlora compare`: figures and settings of runs side by side, and a page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora import events
from sdlora.config import files
from sdlora.errors import ConfigError
from sdlora.launch.comparison import compare
from sdlora.launch.runs import RunHandle
from tests.support.told_runs import made, started, step, told


def finished(root: Path, name: str, steps: int, *settings: str) -> RunHandle:
    config = files.load(overrides=["previews.prompts=[a <b>fox</b> --d 7, a cat]", *settings])
    handle = made(root, name, previews=config.previews)
    measured = events.Validated(step=steps, loss=0.08, base_loss=0.1, relative_loss=0.8, is_best=True)
    told(handle, started(steps), *(step(one) for one in range(1, steps + 1)), measured)
    told(handle, events.RunFinished(step=steps, reason="completed", adapter_path=None, seconds=1.0))
    for at in (0, steps):
        folder = handle.files.previews(at)
        folder.mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (300, 200), "teal").save(folder / f"{index}.png")
    return handle


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    first, second = finished(tmp_path, "one", 60), finished(tmp_path, "two", 20, "previews.guidance=4")
    found = compare([first.folder, second.folder])
    assert ("previews.guidance", ["7.0", "4.0"]) in found.differences
    assert "name" not in dict(found.differences)
    facts = dict(found.facts)
    assert facts["status"] == ["finished, step 60", "finished, step 20"]
    assert facts["the best, and where"] == ["0.8000 at step 60", "0.8000 at step 20"]
    assert found.prompts == [("a <b>fox</b>", 7), ("a cat", 1)]
    page = found.as_html()
    assert "a &lt;b&gt;fox&lt;/b&gt;" in page
    assert page.count("data:image/webp") == 2 * (2 + 4)  # the newest of each, and each step's
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    first, second = finished(tmp_path, "one", 3), finished(tmp_path, "two", 3)
    (second.files.previews(3) / "0.png").write_bytes(b"junk")
    assert compare([first.folder, second.folder]).as_html().count("data:image/webp") == 10


def test_what_is_no_run_and_the_same_one_twice_are_refused(tmp_path: Path) -> None:
    first = finished(tmp_path, "one", 3)
    with pytest.raises(ConfigError) as caught:
        compare([first.folder, first.folder, tmp_path / "nowhere"])
    assert "one is named twice" in str(caught.value)
    assert "nowhere" in str(caught.value)
    with pytest.raises(ConfigError, match="name at least two runs"):
        compare([first.folder])


def test_the_command_writes_a_page_and_replaces_none_unasked(cli: Callable[..., Any], tmp_path: Path) -> None:
    runs = [str(finished(tmp_path, name, 3).folder) for name in ("one", "two")]
    out = tmp_path / "page.html"
    said = cli("compare", *runs, "--out", out)
    assert said.code == 0
    assert "no settings differ" in said.output
    assert out.is_file()
    refused = cli("compare", *runs, "--out", out)
    assert refused.code == 2
    assert "give --force" in refused.errors
    assert cli("compare", *runs, "--out", out, "--force").code == 0
