"""`sdlora suggest`: each fact of the pictures becomes a setting with its reason, and the whole is a preset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.presets import SUBJECTS
from sdlora.config.without_effect import in_training
from sdlora.errors import ConfigError, DataError
from sdlora.training.preflight.suggestion import Suggestion, suggest


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder: `pictures(number, edge_px, caption)`."""

    def make(number: int, edge_px: int = 512, caption: str | None = None) -> Path:
        folder = tmp_path / f"my {number}"
        folder.mkdir()
        for index in range(number):
            Image.new("RGB", (edge_px, edge_px), (index, 9, 9)).save(folder / f"{index}.png")
            if caption is not None:
                (folder / f"{index}.txt").write_text(caption.format(index), encoding="utf-8")
        return folder

    return make


def values(found: Suggestion) -> dict[str, Any]:
    return {each.setting: each.value for each in found.advice}


def test_what_is_written_reads_back_as_what_was_meant(pictures: Callable[..., Path], tmp_path: Path) -> None:
    found = suggest(pictures(12, caption="ohwx, a hat, n{}, outdoors"), "character", memory_gib=5)
    file = tmp_path / "my.yaml"
    file.write_text(found.to_yaml(), encoding="utf-8")
    assert files.load(file) == found.config()
    assert all(each.reason for each in found.advice)
    assert len(values(found)) == len(found.advice), "a setting twice"


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("edge_px", [512, 1024])
def test_the_preset_fits_subject_and_size(pictures: Callable[..., Path], subject: Any, edge_px: int) -> None:
    found = suggest(pictures(3, edge_px), subject, trigger="zwx")
    assert found.preset.startswith("sdxl" if edge_px == 1024 else ("sd15", "anime"))
    assert found.config().images.resolution == edge_px
    assert list(in_training(found.config())) == []


def test_pictures_count_for_length_and_batch(pictures: Callable[..., Path]) -> None:
    few, many = (suggest(pictures(number, caption="a tree {}"), "style") for number in (2, 60))
    assert (few.config().optimization.batch_size, few.config().optimization.steps) == (2, 200)
    assert (many.config().optimization.batch_size, many.config().optimization.steps) == (4, 2000)
    assert few.config().validation.fraction == 0.0
    assert many.config().validation.fraction == 0.1
    assert any("teach little" in each for each in few.remarks)
    assert not any("teach little" in each for each in many.remarks)


def test_tags_are_shuffled_and_sentences_are_not(pictures: Callable[..., Path]) -> None:
    tags = values(suggest(pictures(3, caption="ohwx, blue sky, n{}, tree"), "style"))
    assert (tags["captions.trigger"], tags["captions.shuffle_tags"], tags["captions.keep_tags"]) == ("ohwx", True, 1)
    text = "a tree {} that stands alone in a field, with a wide sky above it"
    assert values(suggest(pictures(4, caption=text), "character"))["captions.shuffle_tags"] is False
    assert list(in_training(suggest(pictures(5, caption=text), "character").config())) == []


def test_small_pictures_lower_the_resolution_and_are_named(pictures: Callable[..., Path]) -> None:
    found = suggest(pictures(3, 330), "style", trigger="zwx")
    assert found.config().images.resolution == 320
    tiny = suggest(pictures(4, 64), "style", trigger="zwx")
    assert tiny.config().images.resolution == 320, "less breaks the base model's forms"
    assert any("4 pictures of 4 will be enlarged" in each for each in tiny.remarks)


def test_what_is_missing_is_said(pictures: Callable[..., Path]) -> None:
    folder = pictures(3)
    with pytest.raises(ConfigError, match="--trigger"):
        suggest(folder, "style")
    found = suggest(folder, "style", trigger="zwx")
    assert any("3 pictures of 3 without a caption" in each for each in found.remarks)
    assert (found.config().captions.default, found.config().captions.trigger) == ("", "zwx")
    assert any(each.startswith("no trigger") for each in suggest(pictures(4, caption="a tree {}"), "style").remarks)


def test_what_all_captions_hold_may_be_the_word_and_is_named(pictures: Callable[..., Path]) -> None:
    found = suggest(pictures(4, caption="a hat {}, ink style"), "style")
    assert found.remarks[0].endswith(
        "'ink style' stands in 4 of 4 captions: if that is the word, --trigger 'ink style'"
    )
    with pytest.raises(DataError, match="is a file: give the folder"):
        suggest(pictures(2) / "0.png", "style")


def test_nothing_of_the_demos_own_pictures_is_left(pictures: Callable[..., Path]) -> None:
    config = suggest(pictures(12, caption="a tree {}"), "style", base="builtin:emoji", trigger=" ").config()
    assert config.base_model.model == "builtin:emoji"
    assert config.images.resolution == 128
    assert config.captions.trigger is None
    assert (config.previews.prompts, config.previews.from_captions) == ((), 2)
    assert "blueprint" not in files.dump(config)


def test_memory_is_kept_to_or_refused(pictures: Callable[..., Path]) -> None:
    folder = pictures(3, 1024, "a tree {}")
    assert suggest(folder, "style", memory_gib=6).preset == "sd15_style.yaml"
    found = suggest(folder, "style", memory_gib=8)
    assert found.preset == "sdxl_style.yaml"
    assert any("8 GiB" in each.reason for each in found.advice)
    with pytest.raises(ConfigError, match="not enough"):
        suggest(folder, "style", memory_gib=0.5)


def test_the_command_writes_a_preset_once(cli: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ("suggest", "builtin:mascot", "--for", "character", "-o", tmp_path / "my.yaml")
    first = cli(*arguments)
    assert first.code == 0, first.errors
    assert "steps: 1050" in first.output
    assert files.load(tmp_path / "my.yaml").captions.trigger == "sdl-mascot"
    again = cli(*arguments)
    assert again.code == 2
    assert "--force" in again.errors
    assert cli("suggest", tmp_path / "nowhere", "--for", "style").code == 2


def test_the_file_is_never_read_in_place_of_its_own_preset(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("preset: anime.yaml", encoding="utf-8")
    for output in ("demo.yaml", "my.yaml"):
        refused = cli("suggest", "builtin:mascot", "--for", "style", "-b", "builtin:emoji", "-o", output, "--force")
        assert (refused.code, "in place of the preset demo.yaml" in refused.errors) == (2, True)
    assert cli("suggest", "builtin:mascot", "--for", "style", "-b", "builtin:emoji").code == 0
    wrong = cli("suggest", "builtin:mascot", "--for", "style", "-b", " ", "-o", "no/such/my.yaml")
    assert "--output: there is no folder no/such" in wrong.errors
    assert "--base: is empty" in wrong.errors


def test_repeats_and_a_missing_word_are_told(pictures: Callable[..., Path]) -> None:
    folder = pictures(3, caption="a tree {}")
    more = folder / "5_trees"
    more.mkdir()
    Image.new("RGB", (512, 512), "green").save(more / "a.png")
    (more / "a.txt").write_text("a tree in spring", encoding="utf-8")
    reason = next(each.reason for each in suggest(folder, "style").advice if each.setting == "optimization.steps")
    assert "200 times each of 4 pictures at batch 4 on average, shared out by their folders' repeats (1 to 5)" in reason
    with pytest.raises(ConfigError, match="a concept needs a word of its own"):
        suggest(folder, "concept")
