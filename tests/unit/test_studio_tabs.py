"""The handlers of Mix and Generate without a browser: what they return for what the inputs hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import AdapterError, ConfigError, DataError
from sdlora.generation.restore.image_files import save_image
from sdlora.launch.images import ImageRequest
from sdlora.processes import start_mark
from tests.support.emoji_adapters import random_adapter

gr = pytest.importorskip("gradio", reason="the page needs gradio")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Both tabs, laid out in a page that nobody serves."""
    from webui.context import Context
    from webui.generate import tab as generate
    from webui.mix import tab as mix
    from webui.scripts import CLOCK
    from webui.services import Services
    from webui.state import PageState
    from webui.workspace import Workspace

    workspace = Workspace(tmp_path_factory.mktemp("page") / "root")
    workspace.prepare()
    random_adapter(workspace.adapters / "ink.safetensors", 1, trigger="ink style")
    random_adapter(workspace.adapters / "wash.safetensors", 2)
    with gr.Blocks() as page:
        clocks = {name: gr.HTML("", js_on_load=CLOCK) for name in ("mix", "generate")}
        with gr.Tabs() as tabs:
            context = Context(Services(workspace, PageState(workspace.state)), page, tabs, clocks)
            for name in ("mix", "generate"):
                context.share(f"tab.{name}", gr.Tab(name, id=name))
            for name, module in (("mix", mix), ("generate", generate)):
                with context.shared[f"tab.{name}"]:
                    module.build(context)
        yield context


@pytest.fixture
def tab(context: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The generate tab with a queue that only notes what it is asked for."""
    tab = context.shared["generate.tab"]
    tab.asked = []

    def submit(config: GenerateConfig, *, wait: bool = False) -> int:
        tab.asked.append((config, wait))
        return len(tab.asked)

    images = SimpleNamespace(
        submit=submit, submit_grid=lambda grid, run=None, wait=False: submit(grid, wait=wait), is_busy=False
    )
    monkeypatch.setitem(context.services.__dict__, "images", images)
    context.services.active.change(lambda _: ())
    return tab


@pytest.fixture
def generating(tab: Any) -> Any:
    """What generates."""
    return tab.generating


def values_of(tab: Any, **shown: Any) -> dict[Any, Any]:
    """What a handler that generates is given."""
    everything = {**tab.form.show(GenerateConfig()), **shown}
    values = {component: everything[name] for name, component in tab.form.components.items()}
    return {
        **values,
        **dict.fromkeys(tab.generating.axes, ""),
        tab.generating.start.is_on: False,
        tab.generating.start.editor: None,
        tab.context.shared["mix.prompt"]: "",
    }


def panel_of(context: Any) -> Any:
    """The library's panel, found by what its Add button calls."""
    from webui.mix.library import LibraryPanel

    with gr.Blocks():
        return LibraryPanel(context)


def test_a_request_is_handed_on_or_its_problems_shown(tab: Any, generating: Any) -> None:
    assert generating.begin(values_of(tab, prompt="a fox", steps=4))[0] == ""
    assert [(config.prompt, config.steps, wait) for config, wait in tab.asked] == [("a fox", 4, False)]
    shown = generating.begin(values_of(tab, steps=0, seed=-7))[0]
    assert "2 problems to fix first" in shown
    assert 'data-field="generate-steps"' in shown
    assert len(tab.asked) == 1


def test_generate_says_that_it_leaves_the_axes_of_the_grid_out(tab: Any, generating: Any) -> None:
    values = {**values_of(tab, prompt="a fox"), generating.axes[1]: "steps"}
    shown = generating.begin(values)[0]
    assert "Without the X/Y/Z grid" in shown
    assert "Generate grid, below its axes" in shown
    assert len(tab.asked) == 1


def test_a_start_image_that_is_missing_is_a_problem(tab: Any, generating: Any) -> None:
    values = {**values_of(tab), generating.start.is_on: True}
    assert "there is no picture; add one" in generating.begin(values)[0]
    picture = {"background": Image.new("RGB", (32, 32)), "layers": []}
    generating.begin({**values, generating.start.editor: picture})
    assert tab.asked[0][0].start.image.is_file()
    assert tab.asked[0][0].start.mask is None
    generating.begin(values)  # the editor of a page that was just loaded is empty; the picture is the same
    assert tab.asked[1][0].start.image == tab.asked[0][0].start.image
    generating.start._forget()
    assert "there is no picture; add one" in generating.begin(values)[0]
    generating.start._take(picture)
    generating.begin(values)
    assert tab.asked[2][0].start.image == tab.asked[0][0].start.image
    generating.start._forget()
    assert "there is no picture; add one" in generating.begin(values)[0]


def test_beside_a_training_the_person_is_asked_first(
    tab: Any, generating: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tab.services.watch, "training", lambda: "portrait")
    _, choice, words, _, pending = generating.begin(values_of(tab))
    assert choice.visible
    assert "**portrait** is training" in words
    assert tab.asked == []
    generating.decide(True)(pending)
    assert tab.asked[0][1] is True
    generating.decide(False)(pending)
    assert tab.asked[1][1] is False


def test_comparison_and_grid_generate_with_the_rows_in_use(tab: Any, generating: Any, context: Any) -> None:
    from sdlora.library.rows import add

    prompt = context.shared["mix.prompt"]
    assert "there is no adapter to compare" in tab._compare(values_of(tab))[0]
    for entry in tab.services.adapters.entries:
        tab.services.active.change(lambda rows, entry=entry: add(rows, entry))
    tab._compare({**values_of(tab, prompt="of the form"), prompt: "of the mix"})
    grid = tab.asked[0][0]
    assert len(grid.cells()) == 4
    assert grid.config.prompt == "of the mix"
    assert generating.begin_grid(values_of(tab), ["steps=nonsense"])[-1] is None
    assert len(tab.asked) == 1


def test_size_and_seed_buttons_fill_in_and_are_remembered(tab: Any, context: Any) -> None:
    assert tab._set_size("512 x 768", None, None) == (512, 768)
    unchanged = (gr.skip(), gr.skip())
    for size, width in ((None, 640), ("", 640), ("Another", 640), ("Model's own", None)):  # a list opened and left
        assert tab._set_size(size, width, width) == unchanged
    assert tab._swap(512, 768) == (768, 512)
    assert context.state.get("generate.width_px") == 768
    assert tab._set_size("Model's own", 512, 768) == (None, None)
    seed = tab.form.components["seed"]
    assert tab._random() == {seed: -1}
    tab.services.images.current = lambda: None
    with pytest.raises(DataError, match="Nothing was generated yet"):
        tab._reuse()
    done = ImageRequest(1, "a fox", "finished", 1, seeds=(77, 78))
    tab.services.images.current = lambda: done
    assert tab._reuse() == {seed: 77}


def test_settings_of_a_picture_fill_form_rows_and_text(tab: Any, context: Any, tmp_path: Path) -> None:
    config = GenerateConfig(
        prompt="a fox", steps=9, seed=5, width_px=64, height_px=64, adapters=(UsedAdapter(file="ink", weight=0.3),)
    )
    facts = SimpleNamespace(model_name="builtin:emoji", model_hash=None, adapter_hashes={}, family="sd1", seconds=1.0)
    generated: Any = SimpleNamespace(image=Image.new("RGB", (64, 64)), config=config, facts=facts)
    updates = tab.results._restore(save_image(generated, tmp_path / "a.png"), with_seed=True)
    form = tab.form.components
    assert (updates[form["prompt"]], updates[form["steps"]], updates[form["seed"]]) == ("a fox", 9, 5)
    assert updates[context.shared["rows"].tags] == "<lora:ink:0.3>"
    assert "Everything was taken over." in updates[tab.results.notes]
    assert form["num_images"] not in updates
    assert context.state.get("generate.steps") == 9
    context.state.set("generate.seed", 1)
    assert form["seed"] not in tab.results._restore(tmp_path / "a.png", with_seed=False)


def test_only_images_of_the_outputs_are_deleted_and_come_back(tab: Any, context: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine.png"
    Image.new("RGB", (8, 8)).save(elsewhere)
    with pytest.raises(DataError, match="Only images of this workspace's outputs"):
        tab.results._delete(str(elsewhere), "", 1)
    image = context.workspace.outputs / "day" / "0.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(image)
    assert "1 image" in tab.results._show_history("", 1)[1]
    assert "No images yet" in tab.results._delete(str(image), "", 1)[tab.results.found]
    assert not image.exists()
    tab.results._undo("", 1)
    assert image.is_file()
    assert tab.results._zip("").is_file()


def test_the_library_panel_shows_searches_and_refuses(context: Any, tmp_path: Path) -> None:
    panel = panel_of(context)
    gallery, words, pick, *_ = panel.look_again("", "", 1, None)
    assert gallery.count("data-tile=") == 2
    assert "2 adapters" in words
    assert len(pick.choices) == 2
    assert "1 of 2 adapter" in panel.show("ink style", "sd1", 1, None)[1]
    assert "Nothing fits" in panel.show("", "sdxl", 1, None)[1]
    with pytest.raises(AdapterError, match="Choose an adapter first"):
        panel._add(None)
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(b"\x80\x02K")
    refused = panel._upload([str(bad)], "", "", 1, None)
    assert "bad.ckpt is a pickle" in refused[1]


def test_the_grid_offers_axes_without_adapters_too(context: Any) -> None:
    offered = dict(context.shared["generate.tab"].grid.axes["x"].choices)
    assert offered["Training step of a run"] == "checkpoint"


def test_an_upload_that_is_not_added_under_its_name_says_so(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("gradio.Info", lambda words, **_: said.append(words))
    panel = panel_of(context)
    other, same = (tmp_path / place / "ink.safetensors" for place in ("one", "two"))
    for path in (other, same):
        path.parent.mkdir()
    random_adapter(other, 7)
    same.write_bytes((context.workspace.adapters / "ink.safetensors").read_bytes())
    random_adapter(tmp_path / "chalk.safetensors", 8)
    panel._upload([str(other), str(tmp_path / "chalk.safetensors"), str(same)], "", "", 1, None)
    assert said == [
        "1 added to the library.<br>ink.safetensors was added as ink-2: another file has its name."
        "<br>ink.safetensors is in the library already."
    ]


def test_a_typed_name_of_an_adapter_is_added_or_said_to_be_nobodys(context: Any) -> None:
    panel = panel_of(context)
    context.services.scan()
    panel.rows = context.shared["generate.tab"].generating.rows
    context.services.active.change(lambda _: ())
    panel._add("wash")
    assert [row.name for row in context.services.active.rows] == ["wash"]
    with pytest.raises(ConfigError, match="no adapter of that name is in the library; near it: wash"):
        panel._add("wish")


def test_requests_that_the_server_never_got_to_are_told_by_the_next_one(tab: Any, context: Any) -> None:
    from webui.generate import view

    begun = ImageRequest(1, "a fox", "generating", 12, images=(Path("1.png"), Path("2.png")))
    waits, done = ImageRequest(2, "a castle", "queued", 1), ImageRequest(3, "an owl", "finished", 1)
    context.services.images.requests = lambda: [begun, waits, done]
    tab.results._keep_unfinished()
    kept = context.services.state.get("generate.unfinished")
    assert kept["told"] == ["a fox: 2 of 12 were generated", "a castle: 0 of 1 were generated"]
    assert "ended before these were done" in view.lost(kept)
    assert [view.lost(odd) for odd in ([], None, {"a": 1}, "x", {"process": 1, "began": 2, "told": 3})] == [""] * 5

    # One that still runs beside this one has not ended, and what it told stays.
    others = {**kept, "process": os.getppid(), "began": start_mark(os.getppid())}
    context.services.state.set("generate.unfinished", others)
    assert view.lost(others) == ""
    context.services.images.requests = list
    tab.results._keep_unfinished()
    assert context.services.state.get("generate.unfinished") == others
