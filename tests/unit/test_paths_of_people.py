"""Paths as people write them: `~`, files that are there already, endings that don't fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora import disk
from sdlora.config import files
from sdlora.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_the_home_folder_is_filled_in_where_the_shell_left_it(home: Path) -> None:
    config = files.load(overrides=["outputs.folder=~/runs", "images.folder=[~/a, b]"])
    assert config.outputs.folder == home / "runs"
    assert config.images.folder == (home / "a", Path("b"))
    with pytest.raises(ConfigError, match="variables are not filled in here; write the path itself"):
        files.load(overrides=["outputs.folder=$HOME/runs"])
    assert files.load(overrides=["outputs.folder=$5"]).outputs.folder == Path("$5")


def test_a_command_writes_into_the_home_folder(home: Path, cli: Any) -> None:
    picture(home / "a.png")
    assert cli("dataset", "sheet", str(home), "--out=~/sheet.png", "--set", "captions.default=a").code == 0
    assert (home / "sheet.png").is_file()
    assert not Path("~").exists()
    told = cli("dataset", "sheet", str(home), "--out=$HOME/s.png")
    assert told.code == 2
    assert "variables are not filled in here; write the path itself" in told.errors


def test_a_picture_or_caption_of_a_dataset_is_not_written_over(home: Path, cli: Any) -> None:
    picture(home / "a.png")
    before = (home / "a.png").read_bytes()
    told = cli("dataset", "sheet", str(home), "--out", str(home / "a.png"))
    assert told.code == 2
    assert "exists already; choose another name, or give --force to replace it" in " ".join(told.errors.split())
    told = cli("dataset", "sheet", str(home), "--out", str(home / "a.txt"))
    assert "what is written is a .png file; give it that ending" in " ".join(told.errors.split())
    for command, right in (
        (("dataset", "check", str(home), "--html"), "a.html"),
        (("compare", str(home), str(home), "--out"), "a.html"),
        (("suggest", str(home), "--for", "style", "--output"), "a.yaml"),
        (("dataset", "import", str(home / "settings.json"), "--out"), "a.yaml"),
    ):
        told = cli(*command, str(home / "a.txt"))
        assert (told.code, f"give it that ending: {right}" in " ".join(told.errors.split())) == (2, True)
    assert (home / "a.png").read_bytes() == before
    assert sorted(path.name for path in home.iterdir()) == ["a.png"]


def test_a_queue_that_is_not_there_is_not_held(home: Path, cli: Any) -> None:
    told = cli("queue", "hold", "x")
    assert told.code == 2
    assert "no such folder" in told.errors
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo.yaml", "optimization.steps=3"), "overrides must be a list of texts"),
        (("demo.yaml", [None]), "overrides must be a list of texts"),
        (({"seed": 3},), "must be a preset's name or a file, got dict"),
    ],
)
def test_other_kinds_of_values_are_refused_in_words(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        files.load(*arguments)


def picture(path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_of_the_systems_own_is_not_called_a_full_disk() -> None:
    assert disk.why_not_writable(Path("/proc/runs")) == "/proc is the system's own: no files can be made there"
