"""Folders with something in them that can't be looked at or read: the rest of what lies there counts all the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.__main__ import main
from sdlora.config import files, presets
from sdlora.data.folder_listing import stamp_of_folders
from sdlora.data.sets.uploads import receive
from sdlora.errors import ConfigError
from sdlora.library import mixes
from sdlora.library.scan import Library
from sdlora.models import found as models_found
from tests.support.dataset_pictures import picture, save_captioned
from tests.support.emoji_adapters import random_adapter

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def pipe(path: Path) -> None:
    os.mkfifo(path)


odd = pytest.mark.parametrize("put", [circle, nowhere, pipe])


@odd
def test_lists_of_files_pass_over_what_is_none(
    tmp_path: Path, put: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_found, "_SMALLEST_MODEL_BYTES", 0)
    random_adapter(tmp_path / "b.safetensors", 1, rank=1)
    (tmp_path / "b.mix.yaml").write_text("adapters: []", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("# Purpose: a test\n", encoding="utf-8")
    for ending in (".safetensors", ".mix.yaml", ".yaml"):
        put(tmp_path / f"a{ending}")
    assert [entry.path.name for entry in Library([tmp_path], tmp_path / "library.json").scan().entries] == [
        "b.safetensors"
    ]
    assert "b.mix" in mixes.list_mixes(tmp_path)
    assert "b.safetensors" in dict(models_found.list_models(tmp_path))
    assert "b (yours): a test" in dict(presets.choices(tmp_path))


def test_a_preset_that_is_no_text_is_listed_and_told_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"# caf\xe9\nname: x\n")
    assert "mine (yours)" in dict(presets.choices(tmp_path))
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        presets.load(str(tmp_path / "mine.yaml"))


@odd
def test_changes_of_files_beside_a_broken_link_are_seen(tmp_path: Path, put: Callable[[Path], None]) -> None:
    for name in "amz":
        put(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("one", encoding="utf-8")
        before = stamp_of_folders([tmp_path])
        (tmp_path / f"{name}.txt").write_text("another", encoding="utf-8")
        assert stamp_of_folders([tmp_path]) != before


@odd
def test_settings_from_a_pipe_are_refused_and_not_waited_for(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="can't be read: (it is a pipe|No such file|Too many levels)"):
        files.read_yaml(tmp_path / "a.yaml")


@odd
def test_an_upload_writes_over_no_link_and_no_pipe_and_goes_on_with_the_rest(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    uploads, dataset = tmp_path / "uploads", tmp_path / "dataset"
    for seed, name in enumerate("abc"):
        save_captioned(picture(seed, (64, 64)), uploads / f"{name}.png", f"caption of {name}")
    dataset.mkdir()
    put(dataset / "a.png")
    (dataset / "b.txt").mkdir()
    report = receive(dataset, sorted(uploads.iterdir()))
    assert report.renamed == {"a.png": "a-2.png"}
    assert list(report.refused) == ["b.txt"]
    assert "is a folder where a file is needed" in report.refused["b.txt"]
    assert (dataset / "a.png").is_symlink() or (dataset / "a.png").is_fifo()
    assert (dataset / "a-2.txt").read_text(encoding="utf-8") == "caption of a"
    assert (dataset / "c.txt").read_text(encoding="utf-8") == "caption of c"


@pytest.mark.parametrize("command", [["resume"], ["stop"], ["dataset", "undo"], ["evaluate"]])
def test_a_folder_whose_links_lead_in_a_circle_is_named(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    circle(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["sdlora", *command, str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    # From Python 3.13 on the system's word for such a link is that there is nothing.
    assert any(words in told for words in ("circle", "no such", "no run", "doesn't exist")), told
