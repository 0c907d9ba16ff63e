"""What can't be written is told before a model is loaded for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdlora import disk
from sdlora.config.captioning import CaptioningConfig
from sdlora.config.generate import GenerateConfig
from sdlora.data import scan_problems
from sdlora.data.captioning import run as captioning
from sdlora.data.captioning.run import caption_folder
from sdlora.errors import DataError
from sdlora.generation import class_images
from sdlora.generation.class_images import generate_class_images
from tests.support.dataset_pictures import picture, save_captioned


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a cat", "--base", "builtin:emoji", "--out"),
        ("generate", "a cat", "--base", "builtin:emoji", "--grid", "cfg=1,7", "--out"),
        ("merge", "{adapter}:1", "--base", "builtin:emoji", "-o"),
        ("mix", "{adapter}:1", "{adapter}:1", "-o"),
        ("resize", "{adapter}", "--rank", "1", "-o"),
        ("convert", "{adapter}", "--to", "kohya", "-o"),
        ("extract", "--tuned", "builtin:emoji", "--base", "builtin:emoji", "-o"),
    ],
)
def test_a_command_whose_result_has_no_place_says_so_at_once(
    cli: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    (tmp_path / "file").touch()
    words = [word.format(adapter=tmp_path / "a.safetensors") for word in command]
    is_file = command[0] in ("mix", "resize", "convert", "extract")
    result = cli(*words, tmp_path / "file" / ("result.safetensors" if is_file else "result"))
    assert result.code == 2
    assert f"{tmp_path / 'file'} is a file, not a folder" in result.errors


def _never(*arguments: Any, **options: Any) -> Any:
    pytest.fail("a model was loaded first")


def test_a_folder_that_can_not_be_written_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_captioned(picture(0), tmp_path / "0.png", None)
    monkeypatch.setattr(scan_problems, "why_not_writable", lambda folder: f"{folder} can't be written to: a test")
    monkeypatch.setattr(captioning, "load_captioner", _never)
    monkeypatch.setattr(class_images, "Generator", _never)
    with pytest.raises(DataError, match="can't be written to: a test"):
        caption_folder(tmp_path, CaptioningConfig())
    with pytest.raises(DataError, match="can't be written to: a test"):
        generate_class_images(GenerateConfig(base_model={"model": "builtin:emoji"}), ["a cat"], 1, tmp_path / "class")


def test_no_place_for_temporary_files_is_told_with_what_names_another() -> None:
    error = FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")
    assert disk.explain(error).startswith("No usable temporary directory found in ['/tmp', '/var/tmp']: make room")
