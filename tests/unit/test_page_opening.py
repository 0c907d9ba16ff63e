"""A page opens whatever lies in its folder and its memory: what can't be shown is told of, and the rest is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import AdapterError, ConfigError, DataError
from sdlora.generation.restore.image_files import save_image
from sdlora.library import mixes
from sdlora.library.rows import Row, apply_tags, from_used, rows_from_plain, to_tags, used
from sdlora.library.scan import Library, Scan, add_file
from tests.support.emoji_adapters import random_adapter

pytest.importorskip("gradio", reason="the page needs gradio")
ODD = "a=b"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset, an adapter whose name can stand in a prompt, and one whose name can't."""
    image = tmp_path / "datasets" / "cats" / "a.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(image)
    for number, name in enumerate(("ink", ODD)):
        random_adapter(tmp_path / "adapters" / f"{name}.safetensors", number)
    return tmp_path


@pytest.fixture
def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A window on the page, whose memory held these values."""
    from tests.support.page_windows import Window
    from webui.app import build
    from webui.workspace import Workspace

    monkeypatch.setattr("sdlora.launch.dry_runs.QUIET_SECONDS", float("inf"))

    def open_page(**kept: Any) -> Any:
        workspace = Workspace(root)
        workspace.prepare()
        workspace.state.write_text(json.dumps({name.replace("__", "."): value for name, value in kept.items()}))
        return Window(build(workspace))

    return open_page


@pytest.fixture
def library(root: Path) -> Scan:
    return Library((root / "adapters",), root / "library.json").scan()


def row(root: Path, name: str, number: int = 1) -> Row:
    return Row(number, str(root / "adapters" / f"{name}.safetensors"))


def remembered(root: Path) -> Any:
    return json.loads((root / ".webui" / "state.json").read_text(encoding="utf-8"))["mix.rows"]


def test_an_adapter_whose_name_no_tag_can_hold_is_refused_before_it_is_kept(
    root: Path, opened: Callable[..., Any]
) -> None:
    page = opened()
    page["mix-pick"] = str(root / "adapters" / f"{ODD}.safetensors")
    page.do("mix-add")
    assert "rename the file" in page["mix-library-problems"]
    page["mix-pick"] = str(root / "adapters" / "ink.safetensors")
    page.do("mix-add")
    assert [Path(one["file"]).stem for one in remembered(root)] == ["ink"]
    assert page["mix-tags"] == "<lora:ink:1>"


def test_a_row_that_no_tag_can_hold_is_shown_left_out_of_the_text_and_removable(
    root: Path, opened: Callable[..., Any]
) -> None:
    page = opened(mix__rows=[asdict(row(root, ODD)), asdict(row(root, "ink", 2))])
    assert page.said == []
    assert page["load-problem"] == ""
    assert "The text leaves it out" in page["mix-rows"]
    assert page["mix-rows"].count("adapter-row") == 2
    assert page["mix-tags"] == "<lora:ink:1>"
    page["mix-tags"] = "<lora:ink:0.5>"
    page.do("mix-tags", "submit")
    assert [(one["enabled"], one["weight"]) for one in remembered(root)] == [(True, 1.0), (True, 0.5)]
    page.do("mix-rows", "select", row="1", act="remove")
    assert [Path(one["file"]).stem for one in remembered(root)] == ["ink"]


def test_rows_from_pictures_and_saved_mixes_leave_such_adapters_out_and_say_so(root: Path, library: Scan) -> None:
    folder = root / "mixes"
    mixes.save_mix((row(root, ODD), row(root, "ink", 2)), "both", folder)
    mixes.save_mix((row(root, ODD),), "odd", folder)
    rows, notes = mixes.load_mix("both", folder, library)
    assert [one.name for one in rows] == ["ink"]
    assert "rename the file" in notes[0]
    with pytest.raises(ConfigError, match="rename the file"):
        mixes.load_mix("odd", folder, library)
    with pytest.raises(AdapterError, match="rename the file"):
        add_file(root / "adapters" / "ink.safetensors", f"{ODD}.safetensors", root / "adapters")
    rows = from_used(used((row(root, ODD), row(root, "ink", 2))))
    assert to_tags(rows, library) == "<lora:ink:1>"
    assert [one.enabled for one in apply_tags(rows, "", library)] == [True, False]


def test_a_picture_made_with_such_an_adapter_gives_all_but_that(root: Path, opened: Callable[..., Any]) -> None:
    files = [str(root / "adapters" / f"{name}.safetensors") for name in (ODD, "ink")]
    config = GenerateConfig(prompt="a fox", adapters=tuple(UsedAdapter(file=file) for file in files))
    facts = SimpleNamespace(model_name="builtin:emoji", model_hash=None, adapter_hashes={}, family="sd1", seconds=1.0)
    made: Any = SimpleNamespace(image=Image.new("RGB", (64, 64)), config=config, facts=facts)
    page = opened()
    page["generate-chosen"] = str(save_image(made, root / "outputs" / "a.png"))
    page.do("generate-restore-all")
    assert (page["generate-prompt"], page["mix-tags"]) == ("a fox", "<lora:ink:1>")
    assert "rename the file" in page["generate-notes"]


def test_what_no_row_can_hold_is_left_out_of_the_memory() -> None:
    good = {"id": 1, "file": "a.safetensors"}
    bad = [{**good, "weight": "x"}, {**good, "file": 5}, {**good, "id": None}, {**good, "blocks": ["ALL"]}]
    assert [one.file for one in rows_from_plain([*bad, good])] == ["a.safetensors"]


def test_a_value_that_a_field_cannot_show_keeps_no_other_from_being_shown(opened: Callable[..., Any]) -> None:
    page = opened(generate__steps="many", generate__prompt="a fox", dataset__chosen=["cats"])
    assert page.said == []
    assert page["generate-prompt"] == "a fox"
    assert page["dataset-editing"] == "cats/a.png"


@pytest.mark.parametrize(
    "place",
    [
        "webui.datasets.tab.listing.read",
        "webui.mix.rows.to_tags",
        "webui.generate.start.StartPanel._kept_picture",
        "webui.train.tab.TrainTab._preset_shown",
    ],
)
def test_whatever_fails_as_a_page_opens_is_told_and_the_rest_is_there(
    opened: Callable[..., Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise DataError("<the disk> hums")

    monkeypatch.setattr(place, fail)
    page = opened(generate__prompt="a fox")
    assert page.said == []  # which would mean that nothing follows
    assert "<the disk> hums" in page["load-problem"]
    assert page["generate-prompt"] == "a fox"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"background": "a.png", "layers": []}, [{"background": "a.png", "layers": []}, None]),  # an editor's value
        ({"__type__": "update", "value": 1}, [{"__type__": "update", "value": 1}, None]),
        ({}, {}),
    ],
)
def test_whatever_a_handler_of_an_opening_page_answers_reaches_its_output(answer: Any, told: Any) -> None:
    import gradio as gr

    from webui.context import loading

    with gr.Blocks():
        output, problem = gr.ImageEditor(), gr.Textbox()
    given = loading(lambda: answer, [output], problem)()
    nothing = gr.skip()
    if isinstance(told, list):
        assert list(given) == [told[0], nothing]
    else:
        assert given == {problem: nothing}
    assert loading(lambda: {output: "a.png"}, [output], problem)() == {problem: nothing, output: "a.png"}


def test_a_press_in_a_row_that_is_another_adapters_by_now_does_nothing(root: Path, opened: Callable[..., Any]) -> None:
    random_adapter(root / "adapters" / "wash.safetensors", 3)
    page = opened(mix__rows=[asdict(row(root, "wash"))])
    gone = {"row": "1", "file": row(root, "ink").file}  # the first row, until another window took it out
    page.do("mix-rows", "select", **gone, act="remove")
    page.do("mix-rows", "select", **gone, set="weight", value="0.2", window="w", number=1)
    assert page.said == ["This adapter is not in use any more."] * 2
    page.do("mix-rows", "sweep", **gone, span="0:1:0.5")
    assert "this adapter is not in use any more" in page["mix-problems"]
    assert page["mix-tags"] == "<lora:wash:1>"
    page.do("mix-rows", "select", row="1", file=row(root, "wash").file, act="remove")
    assert remembered(root) == []
