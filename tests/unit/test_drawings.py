"""Images from the page: requests in order, grids, waiting for a training, history, settings out of pictures."""

from __future__ import annotations

import os
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdlora.config.generate import GenerateConfig
from sdlora.data.thumbnails import thumbnail, tile
from sdlora.errors import ConfigError, RunError
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import Grid
from sdlora.generation.restore.image_files import save_image
from sdlora.launch.images import ImageProgress, WorkerMemory
from sdlora.library.rows import Row, add
from sdlora.models.found import list_models, model_named
from tests.support.emoji_adapters import random_adapter
from webui import fields
from webui.drawing import axes, view
from webui.drawing.history import PAGE_IMAGES, History, write_zip
from webui.drawing.requests import Drawings
from webui.drawing.start_image import keep_editor
from webui.drawing.studio import FIELDS, Studio, count_prompt_tokens
from webui.state import PageState
from webui.trash import move_to_trash, put_back
from webui.workspace import Workspace


class SlowWorker:
    """Stands in for the process that generates: finishes a request when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[GenerateConfig, Sequence[str]]] = []
        self.progress: list[ImageProgress] = []
        self.has_memory = False
        self.released = 0

    def submit(self, config: GenerateConfig) -> str:
        return self.submit_grid(config, ())

    def submit_grid(self, config: GenerateConfig, axes: Sequence[str], *, run: Path | None = None) -> str:
        if config.prompt == "impossible":
            raise RunError("it can't be asked for")
        self.asked.append((config, axes))
        self.progress.append(ImageProgress("drawing", config.num_images, step=1, total_steps=4))
        return str(len(self.asked) - 1)

    def poll(self, request_id: str) -> ImageProgress:
        return self.progress[int(request_id)]

    def cancel(self, request_id: str) -> None:
        self.change(int(request_id), status="cancelled")

    def memory(self) -> WorkerMemory | None:
        return WorkerMemory(1.0, None) if self.has_memory else None

    def release(self, *, cancel: bool = False) -> bool:
        self.released += 1
        return True

    def close(self) -> None: ...

    def change(self, index: int, **values: Any) -> None:
        self.progress[index] = replace(self.progress[index], **values)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@pytest.fixture
def worker() -> SlowWorker:
    return SlowWorker()


def drawings_of(worker: SlowWorker, tmp_path: Path, training: list[str] | None = None) -> Drawings:
    names = [] if training is None else training
    return Drawings(worker, tmp_path / "outputs", lambda: names[0] if names else None)


def test_a_request_is_followed_to_its_end(worker: SlowWorker, tmp_path: Path) -> None:
    drawings = drawings_of(worker, tmp_path)
    assert drawings.current() is None
    number = drawings.submit(GenerateConfig(prompt="a fox", num_images=4, batch_size=4))
    until(lambda: drawings.get(number).status == "drawing")
    assert drawings.is_busy
    assert drawings.get(number).share_done == 0.25
    assert worker.asked[0][0].files.folder.parent == tmp_path / "outputs"
    images = (tmp_path / "a.png", tmp_path / "b.png")
    worker.change(0, status="finished", images=images, seeds=(5, 6))
    until(lambda: drawings.get(number).is_over)
    drawing = drawings.get(number)
    assert (drawing.images, drawing.progress.seeds, drawing.share_done) == (images, (5, 6), 1.0)
    assert not drawings.is_busy
    assert drawings.current() == drawing


def test_the_first_open_request_is_the_current_one(worker: SlowWorker, tmp_path: Path) -> None:
    drawings = drawings_of(worker, tmp_path)
    first, second = (drawings.submit(GenerateConfig(prompt=prompt)) for prompt in ("one", "two"))
    until(lambda: len(worker.asked) == 2)
    current = drawings.current()
    assert current is not None
    assert current.id == first
    assert "<li><span>two</span>" in view.requests(drawings.all())
    drawings.cancel(first)
    until(lambda: drawings.get(first).is_over)
    assert drawings.get(first).status == "cancelled"
    current = drawings.current()
    assert current is not None
    assert current.id == second
    drawings.cancel(second)
    until(lambda: not drawings.is_busy)


def test_a_request_that_cannot_be_asked_for_fails_with_the_reason(worker: SlowWorker, tmp_path: Path) -> None:
    drawings = drawings_of(worker, tmp_path)
    number = drawings.submit(GenerateConfig(prompt="impossible"))
    until(lambda: drawings.get(number).is_over)
    assert drawings.get(number).error == "it can't be asked for"
    assert "it can&#39;t be asked for" in view.progress(drawings.get(number))
    with pytest.raises(RunError, match="there is no request 7"):
        drawings.get(7)


def test_a_request_can_wait_for_a_training_or_be_drawn_after_all(worker: SlowWorker, tmp_path: Path) -> None:
    training = ["portrait"]
    drawings = drawings_of(worker, tmp_path, training)
    waiting = drawings.submit(GenerateConfig(prompt="later"), wait=True)
    hurried = drawings.submit(GenerateConfig(prompt="sooner"), wait=True)
    withdrawn = drawings.submit(GenerateConfig(prompt="never"), wait=True)
    drawings.cancel(withdrawn)
    drawings.draw_now(hurried)
    until(lambda: drawings.get(hurried).status == "drawing" and drawings.get(withdrawn).is_over)
    assert drawings.get(waiting).status == "waiting"
    assert [config.prompt for config, _ in worker.asked] == ["sooner"]
    training.clear()
    until(lambda: drawings.get(waiting).status == "drawing")
    for index in range(2):
        worker.change(index, status="finished")
    until(lambda: not drawings.is_busy)


def test_memory_is_given_back_to_a_training_when_nothing_is_drawn(worker: SlowWorker, tmp_path: Path) -> None:
    training: list[str] = []
    drawings = drawings_of(worker, tmp_path, training)
    assert not drawings.yield_to_training()
    worker.has_memory = True
    assert not drawings.yield_to_training()
    number = drawings.submit(GenerateConfig())
    training.append("portrait")
    assert not drawings.yield_to_training()
    until(lambda: len(worker.asked) == 1)
    worker.change(0, status="finished")
    until(lambda: drawings.get(number).is_over)
    assert drawings.yield_to_training()
    assert worker.released == 1


def test_a_grid_is_one_request_with_its_axes(worker: SlowWorker, tmp_path: Path) -> None:
    drawings = drawings_of(worker, tmp_path)
    config = GenerateConfig(prompt="a cat", seed=3)
    specs = axes.spell([("seed", "1:3:1"), ("replace", "cat, dog"), ("", "")])
    assert specs == ["x=seed=1:3:1", "y=replace=cat, dog"]
    number = drawings.submit_grid(Grid(config, parse_axes(specs, config)))
    until(lambda: len(worker.asked) == 1)
    assert list(worker.asked[0][1]) == ["seed=1:3:1", "replace=cat, dog"]
    assert drawings.get(number).title == "Grid: seed x in place of cat"
    drawings.cancel(number)
    until(lambda: not drawings.is_busy)


# ---- the request behind the form


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    workspace = Workspace(tmp_path / "root")
    workspace.prepare()
    random_adapter(workspace.adapters / "ink.safetensors", 1)
    studio = Studio(workspace, PageState(workspace.state))
    studio.active.change(lambda rows: add(rows, studio.adapters.entries[0]))
    return studio


def shown_for(**values: Any) -> dict[str, Any]:
    return {**fields.show_all(GenerateConfig(), FIELDS), **values}


def test_a_request_holds_the_form_and_the_rows(studio: Studio, tmp_path: Path) -> None:
    config = studio.request(shown_for(prompt="a fox", steps=4, width_px=64), start=(tmp_path / "start.png", None))
    assert (config.prompt, config.steps, config.width_px) == ("a fox", 4, 64)
    assert [Path(adapter.file).name for adapter in config.adapters] == ["ink.safetensors"]
    assert config.start.image == tmp_path / "start.png"
    assert studio.workspace.adapters in config.adapter_folders
    assert studio.request(shown_for(num_images=8), one_image=True).num_images == 1


def test_everything_wrong_with_a_request_is_told_at_once(studio: Studio) -> None:
    studio.active.change(lambda rows: (replace(rows[0], start=0.5, end=0.1),))
    with pytest.raises(ConfigError) as caught:
        studio.request(shown_for(steps=0, width_px=65, colour="red"))
    told = "\n".join(caught.value.problems)
    for words in ("ink: start 0.5 must come before end 0.1", "steps: ", "width_px: ", "colour: unknown setting"):
        assert words in told


def test_tags_of_unknown_adapters_and_wrong_families_are_refused_before_anything_is_drawn(studio: Studio) -> None:
    with pytest.raises(ConfigError, match="prompt: <lora:nobody:1>"):
        studio.request(shown_for(prompt="a fox <lora:nobody:1>"))
    with pytest.raises(ConfigError, match="adapters: these files are gone: /gone.safetensors"):
        studio.request(shown_for(), rows=(Row(1, "/gone.safetensors"),))


def test_a_comparison_has_a_cell_for_none_each_and_together(studio: Studio) -> None:
    random_adapter(studio.workspace.adapters / "wash.safetensors", 2)
    studio.scan()
    entry = studio.adapters.find("wash")
    studio.active.change(lambda rows: add(rows, entry))
    grid = studio.grid(studio.request(shown_for(seed=1), one_image=True), ["compare"])
    assert [cell.labels for cell in grid.cells()] == [("none",), ("ink",), ("wash",), ("together",)]
    offered = dict(axes.choices(studio.active.rows))
    assert offered["Weight of wash"] == "adapter2.weight"
    swept = studio.grid(studio.request(shown_for(), one_image=True), ["adapter2.weight=0:1.2:0.4"])
    assert [cell.config.adapters[1].weight for cell in swept.cells()] == [0.0, 0.4, 0.8, 1.2]


def test_axes_without_values_are_refused_with_an_example() -> None:
    with pytest.raises(ConfigError) as caught:
        axes.spell([("seed", ""), ("compare", ""), ("steps", " ")])
    assert caught.value.problems == ["X: give values, such as 1, 2, 3 or 1:5:1", "Z: give values, such as 10:30:5"]
    with pytest.raises(ConfigError, match="choose what the grid varies"):
        axes.spell([("", ""), (None, None), ("", "")])


def test_tokens_are_counted_without_tags() -> None:
    assert count_prompt_tokens("a red fox <lora:ink:1>", "builtin:emoji") == (3, 75)
    assert count_prompt_tokens("fox " * 80, "not/there-yet") == (80, 150)
    assert count_prompt_tokens("<lora:ink:what>", "builtin:emoji")[0] > 0


# ---- start images


def test_paint_over_the_start_image_becomes_a_mask(tmp_path: Path) -> None:
    background = Image.new("RGBA", (40, 30), (200, 0, 0, 255))
    layer = Image.new("RGBA", (40, 30))
    layer.paste((255, 45, 149, 255), (10, 5, 20, 15))
    picture, mask = keep_editor({"background": background, "layers": [layer], "composite": None}, tmp_path)
    assert picture is not None
    assert mask is not None
    with Image.open(mask) as opened:
        assert opened.mode == "L"
        assert opened.getbbox() == (10, 5, 20, 15)
    with Image.open(picture) as opened:
        assert (opened.mode, opened.size) == ("RGB", (40, 30))
    again = keep_editor({"background": background, "layers": [Image.new("RGBA", (40, 30))]}, tmp_path)
    assert again == (picture, None)
    assert keep_editor(None, tmp_path) == (None, None)
    assert keep_editor({"background": None, "layers": []}, tmp_path) == (None, None)


# ---- history


def picture_of(config: GenerateConfig, path: Path) -> Path:
    facts = SimpleNamespace(model_name="builtin:emoji", model_hash=None, adapter_hashes={}, family="sd1", seconds=1.0)
    generated: Any = SimpleNamespace(
        image=Image.new("RGB", (64, 64)), config=config, facts=facts, warnings=(), path=None
    )
    return save_image(generated, path)


def test_models_are_found_by_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "sdxl" / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "sdxl" / "unet.safetensors").write_bytes(bytes(2**21))
    (tmp_path / "anime.safetensors").write_bytes(bytes(2**21))
    (tmp_path / "tiny.safetensors").write_bytes(bytes(10))
    models = list_models(tmp_path)
    assert [label for label, _ in models] == ["builtin:emoji", "anime.safetensors", "sdxl"]
    assert model_named("Anime", models) == str(tmp_path / "anime.safetensors")
    assert model_named("other", models) is None


def test_history_is_searched_and_paged_newest_first(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    for index in range(PAGE_IMAGES + 2):
        prompt = "a fox" if index % 2 else "a cat"
        path = picture_of(GenerateConfig(prompt=prompt, seed=index, width_px=64, height_px=64), outputs / "day")
        stamp = 1_700_000_000 + index
        os.utime(path, (stamp, stamp))
    history = History(outputs, tmp_path / "history.json")
    page = history.page(1)
    assert (page.num_images, page.num_pages, len(page.images)) == (PAGE_IMAGES + 2, 2, PAGE_IMAGES)
    assert page.images[0].path.name.endswith(f"-{PAGE_IMAGES + 1}.png")
    assert len(history.page(9).images) == 2
    assert history.page(-3).number == 1
    found = history.images("FOX emoji")
    assert len(found) == (PAGE_IMAGES + 2) // 2
    assert {image.prompt for image in found} == {"a fox"}
    assert [image.prompt for image in History(outputs, tmp_path / "history.json").images("cat")] != []
    assert history.page(1, "nothing of the kind").num_images == 0


def test_images_go_to_the_trash_and_come_back(tmp_path: Path) -> None:
    path = picture_of(GenerateConfig(seed=1, width_px=64, height_px=64), tmp_path / "outputs" / "day")
    deleted = move_to_trash([path, tmp_path / "gone.png"], tmp_path / "trash")
    assert not path.exists()
    assert len(deleted) == 1
    assert put_back(deleted) == [path]
    assert path.is_file()
    assert put_back(deleted) == []


def test_a_zip_holds_every_image_once_under_a_name_of_its_own(tmp_path: Path) -> None:
    paths = []
    for day in ("one", "two"):
        (tmp_path / day).mkdir()
        paths.append(tmp_path / day / "00000-1.png")
        Image.new("RGB", (8, 8)).save(paths[-1])
    target = write_zip([*paths, tmp_path / "gone.png"], tmp_path / "exports" / "all.zip")
    with zipfile.ZipFile(target) as archive:
        assert archive.namelist() == ["00000-1.png", "00000-1-2.png"]


def test_thumbnails_are_small_made_once_and_never_fail(tmp_path: Path) -> None:
    Image.new("RGBA", (900, 300), "red").save(tmp_path / "wide.png")
    small = thumbnail(tmp_path / "wide.png", tmp_path / "thumbnails")
    with Image.open(small) as opened:
        assert opened.size == (256, 85)
    changed = small.stat().st_mtime_ns
    assert thumbnail(tmp_path / "wide.png", tmp_path / "thumbnails") == small
    assert small.stat().st_mtime_ns == changed
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "broken.png", tmp_path / "thumbnails").is_file()
    assert thumbnail(tmp_path / "gone.png", tmp_path / "thumbnails").is_file()
    assert tile("a name", tmp_path / "thumbnails") == tile("a name", tmp_path / "thumbnails")
