"""Folders with settings of their own, and every file in them: trained, or listed with the reason."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.images import CaptionsConfig, ImageFolder, ImagesConfig
from sdlora.data.buckets import assign
from sdlora.data.images import ImageRecord, ScanResult, scan
from sdlora.data.planning import tag_counts
from sdlora.errors import ConfigError
from tests.support.dataset_pictures import picture, save_captioned


def scanned(folder: Path, captions: CaptionsConfig | None = None, **settings: object) -> ScanResult:
    return scan(ImagesConfig(folder=folder, cache=False, **settings), captions or CaptionsConfig())


def by_name(records: list[ImageRecord]) -> dict[str, ImageRecord]:
    return {record.path.stem: record for record in records}


def left_out(result: ScanResult) -> dict[str, str]:
    return {item.path.name: item.reason for item in result.left_out}


def test_every_folder_has_its_own_settings_and_takes_the_rest_from_the_run(tmp_path: Path) -> None:
    for name, words in (("cats", "sitting"), ("5_scenes", "a street"), ("others", "a cat")):
        save_captioned(picture(len(name)), tmp_path / name / f"{name}.png", words)
    images = ImagesConfig(
        cache=False,
        resolution=256,
        folders=(
            ImageFolder(folder=tmp_path / "cats", repeats=3, trigger="ohwx cat", horizontal_flip=True),
            ImageFolder(folder=tmp_path / "5_scenes", loss_weight=0.5, resolution=(128, 192), suffix="at night"),
            ImageFolder(folder=tmp_path / "others", is_class=True, repeats=2),
        ),
    )
    captions = CaptionsConfig(trigger="sks", prefix="photo of")
    records = by_name(scan(images, captions).records)
    cats, scenes, others = records["cats"], records["5_scenes"], records["others"]
    assert [record.repeats for record in (cats, scenes, others)] == [3, 5, 2]
    assert [record.loss_weight for record in (cats, scenes, others)] == [1, 0.5, 1]
    assert [record.horizontal_flip for record in (cats, scenes, others)] == [True, False, False]
    assert [record.is_class for record in (cats, scenes, others)] == [False, False, True]
    assert cats.plain_caption() == "photo of ohwx cat, sitting"
    assert scenes.plain_caption() == "photo of sks, a street at night"
    assert others.plain_caption() == "a cat"
    assert [(item.record.path.stem, item.resolution) for item in assign(list(records.values()), images)] == [
        ("cats", 256), ("5_scenes", 128), ("5_scenes", 192), ("others", 256),
    ]  # fmt: skip


def test_a_folder_in_both_forms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"images\.folders: images\.folder is set too; put all into images\.folders"):
        files.load(None, ["images.folder=a", "images.folders=[{folder: b}]"])


def test_an_unknown_setting_of_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"images\.folders\.0\.repaets: unknown setting"):
        files.load(None, ["images.folders=[{folder: b, repaets: 3}]"])


def test_what_is_not_trained_is_listed_with_the_reason(tmp_path: Path) -> None:
    for name in ("a.png", "b.jfif", "c.jpe"):
        save_captioned(
            picture(ord(name[0])), tmp_path / name, "a fox", **({} if name == "a.png" else {"format": "JPEG"})
        )
    for name in ("@eaDir/a.png", "Thumbs.db", "._a.png", "notes.docx", ".hidden.png", "lonely.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    result = scanned(tmp_path)
    assert [record.path.name for record in result.records] == ["a.png", "b.jfif", "c.jpe"]
    assert left_out(result) == {
        "@eaDir": "a Synology NAS's thumbnails",
        "Thumbs.db": "Windows' thumbnails",
        "._a.png": "macOS's notes about a file",
        "notes.docx": "not an image",
        ".hidden.png": "hidden",
        "lonely.txt": "a caption without an image of its name",
        "gone.png": "a link to a file that doesn't exist",
    }


def test_repeats_that_are_read_as_a_name_and_shared_captions_are_said(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "1000_many" / "a.png", "a fox")
    save_captioned(picture(2), tmp_path / "1000_many" / "a.jpg", "a fox")
    result = scanned(tmp_path)
    assert [record.repeats for record in result.records] == [1, 1]
    assert any("a.jpg and a.png share one caption, a.txt" in note for note in result.notes)
    assert any(note.startswith("1000_many: 1000 is read as part of the name") for note in result.notes)


def test_another_ending_of_caption_files_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("a fox")
    assert scanned(tmp_path, CaptionsConfig(extension=".caption")).records[0].caption == "a fox"


def test_several_captions_are_each_trained_at_their_chance(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "a long story about a fox")
    (tmp_path / "a.short.txt").write_text("fox")
    captions = CaptionsConfig(alternatives={".short.txt": 0.3}, trigger="ohwx")
    result = scanned(tmp_path, captions)
    (record,) = result.records
    assert result.left_out == []
    texts = [record.trained_caption(random.Random(seed)) for seed in range(2000)]
    assert set(texts) == {"ohwx, a long story about a fox", "ohwx, fox"} == set(record.trained_captions() or ())
    assert texts.count("ohwx, fox") / 2000 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("name", ["metadata.json", "metadata.jsonl"])
def test_metadata_gives_captions_and_loss_weights(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows = [{"file_name": "a.png", "text": "a fox", "loss_weight": 0.25}]
    (tmp_path / name).write_text(json.dumps(rows) if name.endswith(".json") else json.dumps(rows[0]))
    (record,) = scanned(tmp_path).records
    assert (record.caption, record.loss_weight) == ("a fox", 0.25)


def test_sd_scripts_metadata_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "metadata.json").write_text(json.dumps({"a.png": {"caption": "a fox", "tags": "red, snow"}}))
    assert scanned(tmp_path).records[0].caption == "a fox, red, snow"


def test_the_metadata_lists_the_tags_that_are_trained(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "saber (fate), ;( ||| red;;;hat")
    captions = CaptionsConfig(trigger="ohwx", keep_separator="|||", group_separator=";;;")
    (counts,) = tag_counts(scanned(tmp_path, captions).records).values()
    assert set(counts) == {"ohwx", "saber (fate)", ";(", "red", "hat"}
