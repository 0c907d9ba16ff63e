"""What a press is about may be gone, or another one, by the time it arrives: then nothing else is done in its place."""

from __future__ import annotations

import json
import shutil
import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdlora.data.sets import history, listing
from sdlora.errors import DataError, RunError
from sdlora.launch.watch import RunWatch
from tests.support.told_runs import made, started, step, told

pytest.importorskip("gradio", reason="the page needs gradio")


class Notes(list[str]):
    """In place of what pops up."""


@pytest.fixture
def popped_up(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()
    monkeypatch.setattr("gradio.Info", lambda words, **_: notes.append(words))
    return notes


# ---- runs


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    """The tab's handlers over two runs, fox and owl; a page shows either."""
    from webui.runs.parts import RunParts
    from webui.runs.tab import RunsTab

    for name in ("fox", "owl"):
        told(made(tmp_path / "runs", name), started(2), step(1))
    tab: Any = object.__new__(RunsTab)
    evaluations: Any = SimpleNamespace(state=lambda handle: None, ahead=lambda handle: ())
    tab.watch = RunWatch(tmp_path / "runs")
    tab.made = RunParts(tab.watch, evaluations, tmp_path / "thumbnails", tmp_path / "datasets")
    tab.context = SimpleNamespace(workspace=SimpleNamespace(trash=tmp_path / "trash"))
    tab.buttons, tab._numbers = {}, count(1)
    for name in ("news", "confirm", "question", "pending", "selected", "preview", "problems", "first", "last"):
        setattr(tab, name, name)
    for name in ("evaluate", "asked", "going_on"):
        setattr(tab, name, SimpleNamespace(problems=f"{name}.problems"))
    (tmp_path / "trash").mkdir()
    return tab


SHOWN = ("{}", (0, None), 0.3, False, True, 0, None, [])
"""What a page hands in after the run's name."""


def folders(tab: Any) -> set[str]:
    return {path.name for path in tab.watch.runs_folder.iterdir() if path.is_dir()}


def test_a_press_about_a_run_that_is_gone_reaches_no_other_one(runs: Any) -> None:
    assert runs._handle(None).name in {"fox", "owl"}  # nothing was chosen yet: what the page shows by itself
    stopped: list[str] = []
    with pytest.raises(RunError, match="The run cat is not there any more"):
        runs._acting(lambda handle: stopped.append(handle.name))("cat", *SHOWN)
    with pytest.raises(RunError, match="The run cat is not there any more"):
        runs._asking("delete")("cat")
    assert stopped == []


@pytest.mark.parametrize("action", ["delete", "kill"])
def test_yes_to_a_question_about_a_run_that_is_gone_deletes_no_other_one(runs: Any, action: str) -> None:
    answer = runs._confirmed((action, "cat"), "cat", *SHOWN)
    assert "The run cat is not there any more" in answer["problems"]
    assert not answer["confirm"]["visible"]
    assert {"fox", "owl"} <= folders(runs)


def test_after_a_deletion_the_next_run_is_shown_without_a_word(runs: Any) -> None:
    answer = runs._confirmed(("delete", "fox"), "fox", *SHOWN)
    news = json.loads(answer["news"])
    assert (answer["selected"], news["asked"], news["run"], news["gone"]) == ("", "", "owl", "")
    assert "fox" not in folders(runs)


def test_a_run_that_is_gone_is_named_where_another_one_is_shown_for_it(runs: Any) -> None:
    told_of = {name: json.loads(runs._tell(name, *SHOWN)["news"]) for name in ("cat", "fox", None)}
    assert told_of["cat"]["run"] in {"fox", "owl"}
    assert told_of["cat"]["gone"] == "The run cat is not there any more."
    assert (told_of["fox"]["gone"], told_of[None]["gone"]) == ("", "")


def test_problems_with_one_run_and_its_stretch_of_steps_do_not_stand_over_another(runs: Any) -> None:
    event: Any = SimpleNamespace(pressed={"run": "owl"})
    looked_at = (*SHOWN[:5], 50, 80, [])
    answer = runs._select(event, "fox", *looked_at)
    assert (answer["first"], answer["last"]) == (0, None)
    again = runs._select(event, "owl", *looked_at)
    assert (again["first"], again["last"]) == (50, 80)
    panels = ("problems", "evaluate.problems", "asked.problems", "going_on.problems")
    assert [answer[panel] for panel in panels] == [""] * 4


# ---- datasets


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (96, 96), "teal").save(folder / f"{name}.png")


NOTHING_TYPED = ("", "", {}, "1")
"""What an empty editor hands in."""


@pytest.fixture
def datasets(tmp_path: Path) -> Any:
    """The tab over two datasets, whose parts show nothing."""
    from webui.datasets.tab import DatasetTab

    pictures(tmp_path / "datasets" / "cats", "a")
    pictures(tmp_path / "datasets" / "dogs", "a", "b")
    tab: Any = object.__new__(DatasetTab)
    tab.datasets = tmp_path / "datasets"
    workspace = SimpleNamespace(trash=tmp_path / "trash")
    tab.context = SimpleNamespace(state=SimpleNamespace(set=lambda *_: None), workspace=workspace)
    silent = SimpleNamespace(opened=lambda *_: {}, editor=SimpleNamespace(keep=lambda typed: None))
    tab.browser = tab.bulk = tab.work = silent
    for name in ("chosen", "opened", "received", "empty", "below", "delete", "rename", "train", "upload"):
        setattr(tab, name, name)
    return tab


def test_pictures_for_a_dataset_that_is_gone_come_into_no_other_one(datasets: Any, tmp_path: Path) -> None:
    pictures(tmp_path, "new")
    with pytest.raises(DataError, match="There is no dataset called 'foxes' any more, so nothing was added"):
        datasets._receive(*NOTHING_TYPED, "foxes", [str(tmp_path / "new.png")])
    assert [len(list(folder.iterdir())) for folder in sorted(datasets.datasets.iterdir())] == [1, 2]
    datasets._receive(*NOTHING_TYPED, None, [str(tmp_path / "new.png")])  # a page that shows none
    assert len(list((datasets.datasets / "my images").glob("*.png"))) == 1


def test_a_dataset_that_is_gone_is_named_where_another_one_is_shown_for_it(datasets: Any) -> None:
    event: Any = SimpleNamespace(pressed={"name": "<foxes>"})
    answer = datasets._go(event, *NOTHING_TYPED)
    assert answer["opened"] == "cats"
    assert answer["received"] == "There is no dataset called &#x27;&lt;foxes&gt;&#x27; any more."
    assert datasets._choose("dogs")["received"] == ""
    assert datasets._choose(None)["received"] == ""


def test_undo_takes_back_the_change_that_it_names_or_none(tmp_path: Path, popped_up: Notes) -> None:
    from webui.datasets.browser import Browser

    folder = tmp_path / "cats"
    pictures(folder, "a", "b", "c")
    browser: Any = object.__new__(Browser)
    browser._folder = lambda name: folder
    browser.refreshed = lambda folder, *around: {}
    browser.problems = "problems"
    history.delete_image(folder, listing.read(folder)[0])
    change = history.last_change(folder)
    assert change is not None
    history.delete_image(folder, listing.read(folder)[0])  # in another window
    assert "changed elsewhere" in browser._undo("cats", f"cats/{change.batch}")["problems"]
    assert [item.name for item in listing.read(folder)] == ["c.png"]
    newest = history.last_change(folder)
    assert newest is not None
    assert newest.batch != change.batch
    assert "problems" not in browser._undo("cats", f"cats/{newest.batch}")
    assert [item.name for item in listing.read(folder)] == ["b.png", "c.png"]
    assert popped_up == ["Taken back: 1 file."]


def test_after_an_undo_nothing_is_said_of_the_mask_that_was_taken_back(tmp_path: Path) -> None:
    from webui.datasets.mask import MaskPanel

    pictures(tmp_path / "cats", "a")
    panel: Any = object.__new__(MaskPanel)
    panel._folder = lambda name: tmp_path / name
    panel.context = SimpleNamespace(workspace=SimpleNamespace(thumbnails=tmp_path / "thumbnails"))
    for name in ("canvas", "painted", "said"):
        setattr(panel, name, name)
    open_on_a = panel._changed("cats/a.png", {"layers": [Image.new("RGBA", (8, 8))]})
    assert (open_on_a["said"], open_on_a["painted"]) == ("", "cats/a.png")
    assert open_on_a["canvas"]["value"]["layers"] == []
    assert panel._changed("", None) == {"said": ""}
    paint = Image.new("RGBA", (8, 8), "red")
    assert panel._changed("cats/a.png", {"layers": [paint]}) == {"said": ""}  # not saved yet: it stays


# ---- images, exports, trash


@pytest.fixture
def results(tmp_path: Path) -> Any:
    """The panel of generated pictures, which lists none."""
    from webui.generate.results import ResultsPanel
    from webui.workspace import Workspace

    pictures(tmp_path / "outputs", "a", "b")
    panel: Any = object.__new__(ResultsPanel)
    panel._deleted, panel._deleting = [], threading.Lock()
    panel.context = SimpleNamespace(workspace=Workspace(tmp_path))
    panel._listed = lambda text, number: {}
    for name in ("selected", "picture", "text", "notes", "selected_panel", "undo", "problems"):
        setattr(panel, name, name)
    return panel


def test_a_picture_that_another_window_deleted_is_not_deleted_again_and_its_undo_stays(
    results: Any, tmp_path: Path, popped_up: Notes
) -> None:
    picture = tmp_path / "outputs" / "a.png"
    assert results._delete(str(picture), "", 1)["undo"].visible
    assert popped_up == ["a.png is in the trash."]
    again = results._delete(str(picture), "", 1)  # in the other window
    assert "a.png is not among the images any more" in again["problems"]
    assert (again["undo"].visible, again["selected"], popped_up) == (True, "", ["a.png is in the trash."])
    assert "problems" not in results._undo("", 1)
    assert picture.is_file()
    assert "Nothing came back" in results._undo("", 1)["problems"]
    results._delete(str(picture), "", 1)
    shutil.rmtree(tmp_path / "trash")
    assert "Nothing came back" in results._undo("", 1)["problems"]


def test_what_was_deleted_elsewhere_just_now_is_told_of_by_every_delete(runs: Any, datasets: Any) -> None:
    run = runs._handle("owl")
    shutil.rmtree(run.folder)
    with pytest.raises(RunError, match="The run owl is not there any more"):
        run.delete(runs.context.workspace.trash)
    folder = datasets.datasets / "cats"
    item = listing.read(folder)[0]
    item.path.unlink()
    with pytest.raises(DataError, match="a.png is not in the dataset any more"):
        history.delete_image(folder, item)
    assert history.last_change(folder) is None
    datasets._refuse_while_used = shutil.rmtree
    with pytest.raises(DataError, match="There is no dataset called 'cats' any more"):
        datasets._delete("cats")


def test_a_saved_mix_that_was_deleted_elsewhere_is_told_of(tmp_path: Path) -> None:
    gr = pytest.importorskip("gradio")
    from webui.mix.export import build_saved
    from webui.workspace import Workspace

    context: Any = SimpleNamespace(
        services=SimpleNamespace(workspace=Workspace(tmp_path)), workspace=Workspace(tmp_path)
    )
    in_use: Any = SimpleNamespace(outputs=[], shown=dict)
    with gr.Blocks() as page:
        build_saved(context, in_use)
    drop = next(each.fn for each in page.fns.values() if getattr(each.fn, "__name__", "") == "drop")
    told = {shown.elem_id: to for shown, to in drop("both").items()}
    assert "there is no saved mix called &#39;both&#39; any more" in told["mix-saved-problems"]


def test_cancel_takes_back_the_request_that_is_shown(popped_up: Notes) -> None:
    from webui.generate.results import ResultsPanel

    cancelled: list[int] = []
    panel: Any = object.__new__(ResultsPanel)
    requests = [SimpleNamespace(id=1, is_over=True), SimpleNamespace(id=2, is_over=False)]
    panel.services = SimpleNamespace(images=SimpleNamespace(requests=lambda: requests, cancel=cancelled.append))
    panel._cancel("2/0/None|generating")
    assert (cancelled, popped_up) == ([2], [])
    panel._cancel("1/1/None|generating")  # what it was pressed for ended a moment ago, and the next one is under way
    assert (cancelled, popped_up) == ([2, 1], ["This request was over already."])


def test_cancel_ends_the_export_that_is_shown() -> None:
    from webui.mix.export import _Exports

    cancelled: list[str] = []
    exports: Any = object.__new__(_Exports)
    exports._shown = lambda: ""
    exports.job = SimpleNamespace(
        name="b", cancel=lambda: cancelled.append("b"), state=lambda: SimpleNamespace(is_active=True)
    )
    assert exports.cancel("a running 3")[1].visible
    assert cancelled == []
    exports.cancel("b running 0")
    assert cancelled == ["b"]


def test_the_trash_is_emptied_of_what_the_question_named(tmp_path: Path) -> None:
    from webui.settings.tab import SettingsTab

    tab: Any = object.__new__(SettingsTab)
    tab.context = SimpleNamespace(workspace=SimpleNamespace(trash=tmp_path))
    tab._folders = lambda: ""
    for name in ("trash", "counted", "empty", "folders", "trash_problems"):
        setattr(tab, name, name)
    (tmp_path / "one").write_text("1")
    counted = tab._trash_facts()["counted"]
    (tmp_path / "two").write_text("2")  # in another window
    refused = tab._empty(counted)
    assert "press again" in refused["trash_problems"]
    assert "2 deleted items" in refused["trash"]
    assert len(list(tmp_path.iterdir())) == 2
    assert "Deleted 2 files" in tab._empty(refused["counted"])["trash"]
    assert list(tmp_path.iterdir()) == []
