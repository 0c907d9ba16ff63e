"""Images from the page: the request behind the form, grids, start images, history, and what is shown of them."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdlora.config import fields
from sdlora.config.generate import GenerateConfig
from sdlora.data.thumbnails import thumbnail, tile
from sdlora.errors import ConfigError
from sdlora.generation.grid import offers
from sdlora.generation.grid.run import plan_grid
from sdlora.generation.request.painted import keep_painted
from sdlora.generation.restore.history import History, write_zip
from sdlora.generation.restore.image_files import save_image
from sdlora.launch.images import ImageRequest
from sdlora.library.prompt_tags import count_prompt_tokens
from sdlora.library.rows import Row, add, move, update
from sdlora.models.found import list_models, model_named
from sdlora.trash import move_to_trash, put_back
from tests.support.emoji_adapters import random_adapter
from webui.generate import view
from webui.generate.request import FIELDS, read_request
from webui.paging import page_of
from webui.services import Services
from webui.state import PageState
from webui.workspace import Workspace

PAGE_IMAGES = 10


# ---- the request behind the form


@pytest.fixture
def services(tmp_path: Path) -> Services:
    workspace = Workspace(tmp_path / "root")
    workspace.prepare()
    random_adapter(workspace.adapters / "ink.safetensors", 1)
    services = Services(workspace, PageState(workspace.state))
    services.active.change(lambda rows: add(rows, services.adapters.entries[0]))
    return services


def shown_for(**values: Any) -> dict[str, Any]:
    return {**fields.show_all(GenerateConfig(), FIELDS), **values}


def test_a_request_holds_the_form_and_the_rows(services: Services, tmp_path: Path) -> None:
    config = read_request(
        services, shown_for(prompt="a fox", steps=4, width_px=64), start=(tmp_path / "start.png", None)
    )
    assert (config.prompt, config.steps, config.width_px) == ("a fox", 4, 64)
    assert [Path(adapter.file).name for adapter in config.adapters] == ["ink.safetensors"]
    assert config.start.image == tmp_path / "start.png"
    assert services.workspace.adapters in config.adapter_folders
    assert read_request(services, shown_for(num_images=8), one_image=True).num_images == 1


def test_everything_wrong_with_a_request_is_told_at_once(services: Services) -> None:
    services.active.change(lambda rows: (replace(rows[0], start=0.5, end=0.1),))
    with pytest.raises(ConfigError) as caught:
        read_request(services, shown_for(steps=0, width_px=65, colour="red"))
    told = "\n".join(caught.value.problems)
    for words in ("ink: start 0.5 must come before end 0.1", "steps: ", "width_px: ", "colour: unknown setting"):
        assert words in told


def test_unknown_tags_and_files_that_are_gone_are_refused_before_anything_is_generated(
    services: Services,
) -> None:
    with pytest.raises(ConfigError, match="prompt: <lora:nobody:1>"):
        read_request(services, shown_for(prompt="a fox <lora:nobody:1>"))
    with pytest.raises(ConfigError, match="adapters: these files are gone: /gone.safetensors"):
        read_request(services, shown_for(), rows=(Row(1, "/gone.safetensors"),))


def test_a_comparison_has_a_cell_for_none_each_and_together(services: Services) -> None:
    random_adapter(services.workspace.adapters / "wash.safetensors", 2)
    services.scan()
    entry = services.adapters.find("wash")
    services.active.change(lambda rows: add(rows, entry))
    grid = plan_grid(read_request(services, shown_for(seed=1), one_image=True), ["compare"])
    assert [cell.labels for cell in grid.cells()] == [("none",), ("ink",), ("wash",), ("together",)]
    offered = dict(offers.choices(services.active.rows))
    assert offers.spell([(offered["Weight of wash"], "0, 1"), ("", ""), ("", "")], services.active.rows) == [
        "x=adapter2.weight=0, 1"
    ]
    swept = plan_grid(read_request(services, shown_for(), one_image=True), ["adapter2.weight=0:1.2:0.4"])
    assert [cell.config.adapters[1].weight for cell in swept.cells()] == [0.0, 0.4, 0.8, 1.2]


def test_an_axis_of_an_adapter_stays_with_it_when_the_rows_are_moved(services: Services) -> None:
    random_adapter(services.workspace.adapters / "wash.safetensors", 2)
    services.scan()
    entry = services.adapters.find("wash")
    services.active.change(lambda rows: add(rows, entry))
    axis = dict(offers.choices(services.active.rows))["Text encoder weight of wash"]
    wash = services.active.rows[1].id
    services.active.change(lambda rows: move(rows, wash, -1))
    chosen = [(axis, "0, 1"), ("", ""), ("", "")]
    assert dict(offers.choices(services.active.rows))["Text encoder weight of wash"] == axis
    assert offers.spell(chosen, services.active.rows) == ["x=adapter1.text_encoder=0, 1"]
    services.active.change(lambda rows: update(rows, wash, enabled=False))
    with pytest.raises(ConfigError, match="X: its adapter is not in use any more, or switched off"):
        offers.spell(chosen, services.active.rows)


def test_axes_without_values_are_refused_with_an_example() -> None:
    with pytest.raises(ConfigError) as caught:
        offers.spell([("seed", ""), ("compare", ""), ("steps", " ")])
    assert caught.value.problems == ["X: give values, such as 1, 2, 3 or 1:5:1", "Z: give values, such as 10:30:5"]
    with pytest.raises(ConfigError, match="choose what the grid varies"):
        offers.spell([("", ""), (None, None), ("", "")])


def test_tokens_are_counted_without_tags() -> None:
    assert count_prompt_tokens("a red fox <lora:ink:1>", "builtin:emoji") == (3, 75)
    assert count_prompt_tokens("fox " * 80, "not/there-yet") == (80, 150)
    assert count_prompt_tokens("<lora:ink:what>", "builtin:emoji")[0] > 0


# ---- start images


def test_paint_over_the_start_image_becomes_a_mask(tmp_path: Path) -> None:
    background = Image.new("RGBA", (40, 30), (200, 0, 0, 255))
    layer = Image.new("RGBA", (40, 30))
    layer.paste((255, 45, 149, 255), (10, 5, 20, 15))
    picture, mask = keep_painted(background, [layer], tmp_path)
    assert mask is not None
    with Image.open(mask) as opened:
        assert opened.mode == "L"
        assert opened.getbbox() == (10, 5, 20, 15)
    with Image.open(picture) as opened:
        assert (opened.mode, opened.size) == ("RGB", (40, 30))
    assert keep_painted(background, [Image.new("RGBA", (40, 30))], tmp_path) == (picture, None)


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
    images = history.images()
    assert len(images) == PAGE_IMAGES + 2
    assert images[0].path.name.endswith(f"-{PAGE_IMAGES + 1}.png")
    page = page_of(images, 9, PAGE_IMAGES)
    assert (page.number, page.num_pages, len(page.items), page.num_items) == (2, 2, 2, PAGE_IMAGES + 2)
    assert page_of(images, -3, PAGE_IMAGES).number == 1
    assert page_of([], None, PAGE_IMAGES).num_pages == 1
    found = history.images("FOX emoji")
    assert len(found) == (PAGE_IMAGES + 2) // 2
    assert {image.prompt for image in found} == {"a fox"}
    assert [image.prompt for image in History(outputs, tmp_path / "history.json").images("cat")] != []
    assert history.images("nothing of the kind") == []


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


def test_a_request_that_was_cancelled_says_so_until_it_has_ended() -> None:
    asked = ImageRequest(1, "a fox", "loading", 2, is_ending=True)
    assert "Cancelling: it ends once the model is loaded" in view.progress(asked)
    assert "Cancelling: it ends once its step is done" in view.progress(replace(asked, status="generating"))
    over = replace(asked, status="cancelled", images=(Path("a.png"),), started_at=1.0, ended_at=2.5)
    assert "1 image in 1.5 s, then cancelled (2 were asked for)" in view.progress(over)


def test_requests_are_listed_from_the_second_on_and_errors_are_escaped() -> None:
    first, second = ImageRequest(1, "one", "loading", 1), ImageRequest(2, "two", "queued", 3)
    assert view.requests([first]) == ""
    assert "<li><span>two</span> <em>waits for its turn, 0 of 3</em></li>" in view.requests([first, second])
    failed = replace(first, status="failed", error="it can't be <asked> for")
    assert "it can&#39;t be &lt;asked&gt; for" in view.progress(failed)
    assert "Generating images 1 to 2 of 4; 1 more request after it" in view.progress(
        ImageRequest(1, "one", "generating", 4, batch_size=2), 1
    )
