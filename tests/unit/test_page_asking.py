"""Pictures asked for on the page: what reaches the trainer, what is refused, what is shown."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdlora.errors import ConfigError, RunError
from sdlora.events import PictureDrawn
from sdlora.launch.runs import RunHandle
from sdlora.launch.watch import RunWatch
from sdlora.processes import ProcessRecord
from tests.support.told_runs import DEMO, made, started, step, told
from webui.runs.parts import Choice, RunParts


@pytest.fixture
def run(tmp_path: Path) -> RunHandle:
    """A run that trains."""
    handle = made(tmp_path / "runs", "fox")
    told(handle, started(), step(1))
    ProcessRecord.of(os.getpid()).write(handle.files.process)
    return handle


def parts(run: RunHandle, tmp_path: Path) -> dict[str, Any]:
    evaluations: Any = SimpleNamespace(state=lambda handle: None, ahead=lambda handle: ())
    watch = RunWatch(run.folder.parent)
    return RunParts(watch, evaluations, tmp_path / "thumbnails", tmp_path / "datasets").parts(Choice("fox"))


def test_the_trainer_gets_the_prompts_in_their_order(run: RunHandle) -> None:
    run.draw(["a fox --d 3", "a fox, at night"])
    run.draw(["snow"])
    assert run.files.take_asked_prompts() == ["a fox --d 3", "a fox, at night", "snow"]
    assert run.files.take_asked_prompts() == []


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["a fox --zoom 3", "--d 3"], r"(?s)--zoom is no option.*'--d 3': there is nothing to draw"),
        (["a fox"] * 17, "17 pictures at once"),
    ],
)
def test_what_cant_be_drawn_is_refused_as_a_whole(run: RunHandle, prompts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run.draw(prompts)
    assert run.files.take_asked_prompts() == []


def test_nobody_draws_where_nothing_trains(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="isn't running"):
        made(tmp_path / "runs", "owl").draw(["a fox"])


def test_pictures_are_shown_newest_first_and_the_field_while_the_run_trains(run: RunHandle, tmp_path: Path) -> None:
    told_first = parts(run, tmp_path)
    assert {"draw", "draw_prompts"} <= told_first["buttons"].make()
    assert told_first["asked"].make().strip() == ""
    for number in (1, 2):
        path = run.files.next_asked_picture(number)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        told(run, PictureDrawn(step=number, path=str(path), prompt=f"fox <{number}>"))
    told(run, PictureDrawn(step=3, path=str(tmp_path / "gone.png"), prompt="gone"))
    run.files.process.unlink()
    later = parts(run, tmp_path)
    shown = later["asked"].make()
    assert later["asked"].key != told_first["asked"].key
    assert 0 < shown.index("step 2: fox &lt;2&gt;") < shown.index("step 1: fox &lt;1&gt;")
    assert "gone" not in shown
    assert not {"draw", "draw_prompts"} & later["buttons"].make()


def test_previews_are_asked_for_where_the_run_has_any(run: RunHandle, tmp_path: Path) -> None:
    run.preview_now()
    assert run.files.take_requests() == {"preview"}
    handle = made(tmp_path / "runs", "owl", previews=DEMO.previews.model_copy(update={"prompts": ()}))
    ProcessRecord.of(os.getpid()).write(handle.files.process)
    with pytest.raises(RunError, match="owl has no preview prompts, so there is nothing to generate"):
        handle.preview_now()
    assert handle.files.take_requests() == set()
