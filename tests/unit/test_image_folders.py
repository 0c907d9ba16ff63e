"""Folders with settings of their own, and every file in them: trained, or listed with the reason."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.images import CaptionsConfig, ImageFolder, ImagesConfig
from sdlora.config.shipped import sample_images_folder
from sdlora.config.train import TrainConfig
from sdlora.config.without_effect import in_training
from sdlora.data.buckets import assign
from sdlora.data.images import ImageRecord, ScanResult, scan
from sdlora.data.planning import tag_counts
from sdlora.errors import ConfigError, DataError
from sdlora.runs.folder import with_absolute_paths
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


def test_a_trigger_of_class_images_is_told_to_have_no_effect() -> None:
    classes = {"folder": "b", "is_class": True, "trigger": "ohwx", "suffix": "photo"}
    told = "images.folders.1.trigger, suffix: no effect beside is_class, whose images go without"
    assert told in in_training(with_folders({"folder": "a"}, classes))
    emptied = with_folders({"folder": "a"}, {"folder": "b", "is_class": True, "trigger": ""})
    assert not any("is_class" in one for one in in_training(emptied))


def with_folders(*folders: dict[str, Any]) -> TrainConfig:
    values = {"images": {"folders": folders}, "objective": {"prior_preservation": "class_images"}}
    return files.validate(values, "the test")


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


def two(folder: Path, *more: dict[str, object]) -> ScanResult:
    sources = tuple(ImageFolder(folder=folder, **each) for each in more)  # type: ignore[arg-type]
    return scan(ImagesConfig(cache=False, folders=sources), CaptionsConfig())


def test_a_folder_that_is_named_twice_is_trained_both_ways(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "a fox")
    low, high = two(tmp_path, {"repeats": 2, "resolution": 64}, {"repeats": 3, "resolution": 128}).records
    assert [(each.repeats, each.resolutions, each.source) for each in (low, high)] == [(2, (64,), 0), (3, (128,), 1)]
    (once,) = two(tmp_path, {"repeats": 2}, {"repeats": 2}).records
    assert once.repeats == 2
    with pytest.raises(DataError, match="named twice, as training images and as class images"):
        two(tmp_path, {"trigger": "ohwx"}, {"is_class": True})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_folder_inside_another_keeps_its_own_settings(tmp_path: Path, order: tuple[int, int]) -> None:
    save_captioned(picture(1), tmp_path / "far.png", "a fox")
    save_captioned(picture(2), tmp_path / "close" / "near.png", "a face")
    folders = (ImageFolder(folder=tmp_path), ImageFolder(folder=tmp_path / "close", repeats=5, trigger="zz"))
    images = ImagesConfig(cache=False, folders=tuple(folders[index] for index in order))
    records = by_name(scan(images, CaptionsConfig()).records)
    assert {name: (record.repeats, record.plain_caption()) for name, record in records.items()} == {
        "far": (1, "a fox"),
        "near": (5, "zz, a face"),
    }


METADATA: dict[str, object] = {
    "b": {"caption": ["one", "two"], "tags": ["red", "blue"]},
    "C.PNG": {"caption": "in capitals"},
    unicodedata.normalize("NFC", "\u00e4.png"): {"caption": "composed"},
    "gone.png": {"caption": "nobody"},
}


def test_metadata_is_found_by_every_name_that_tools_write_and_what_is_left_is_said(tmp_path: Path) -> None:
    for name in ("a", "b", "c", unicodedata.normalize("NFD", "\u00e4")):
        picture(len(name)).save(tmp_path / f"{name}.png")
    rows = {str(tmp_path / "a.png"): {"caption": "by its path"}, **METADATA}
    (tmp_path / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    found = scanned(tmp_path, CaptionsConfig(default="DEFAULT"))
    captions = {unicodedata.normalize("NFC", record.path.stem): record.caption for record in found.records}
    assert captions == {"a": "by its path", "b": "one, red, blue", "c": "in capitals", "\u00e4": "composed"}
    notes = " | ".join(found.notes)
    assert "1 rows of its metadata name no image that is trained here (gone.png)" in notes
    assert "b: of a list of captions the first is trained" in notes


def test_metadata_rows_that_contradict_each_other_are_said(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    lines = [{"file_name": "a.png", "text": "first"}, {"file_name": "a.png", "text": "", "caption": "second"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,other\n", encoding="utf-8")
    found = scanned(tmp_path)
    assert [record.caption for record in found.records] == ["second"]
    assert "a.png: named by several rows, of which the last counts" in " ".join(found.notes)
    assert "metadata.jsonl is read, metadata.csv beside it not" in found.notes


def test_a_runs_configuration_names_sample_sets_as_written_and_other_folders_by_their_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = files.load("demo.yaml", ["images.folder=[builtin:blueprint, mine]", "validation.folder=builtin:mascot"])
    whole = with_absolute_paths(config)
    assert whole.images.folder == (Path("builtin:blueprint"), tmp_path / "mine")
    assert whole.validation.folder == Path("builtin:mascot")
    assert whole.images.all_folders == (sample_images_folder() / "blueprint", tmp_path / "mine")


def test_a_runs_configuration_holds_no_path_that_depends_on_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every path there is; a link keeps its name, which tells repeats, a caption, or what kind of file it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "10_cat").symlink_to("elsewhere")
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "model.safetensors").symlink_to("blob")
    (tmp_path / "tags.txt").write_text("cat")
    file, folder = "model.safetensors", "10_cat"
    values = {
        "base_model": {"model": file, "vae": file, "adapters": [f"{file}:0.5"]},
        "images": {"folder": folder, "class_folder": folder, "cache_folder": folder},
        "captions": {"protected_tags": Path("tags.txt")},
        "adapter": {"start_from": file},
        "validation": {"folder": folder},
        "previews": {"adapters": [f"{file}:0.5"], "base_model": file},
        "outputs": {"folder": folder},
        "objective": {"prior_preservation": "class_images"},
    }
    listed = {**values, "images": {"folders": [{"folder": folder}], "class_folder": folder}}
    for given in (values, listed):
        kept = with_absolute_paths(files.validate(given, "test")).model_dump(mode="json")
        texts = [text for text in _texts(kept) if any(name in text for name in (file, folder, "elsewhere", "tags.txt"))]
        assert len(texts) > 8
        assert [text for text in texts if not Path(text).is_absolute()] == []
        assert kept["base_model"]["model"] == str(tmp_path / file)
        assert str(tmp_path / folder) in texts
    # Whoever adds a setting that names a file adds it above.
    paths = sorted(name for section in TrainConfig.model_fields for name in _path_settings(section))
    known = ["captions.protected_tags", "images.cache_folder", "images.class_folder", "images.folder", "images.folders"]
    assert paths == [*known, "outputs.folder", "previews.file", "validation.folder"]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _path_settings(section: str) -> Iterator[str]:
    annotation = TrainConfig.model_fields[section].annotation
    for name, setting in getattr(annotation, "model_fields", {}).items():
        if "Path" in str(setting.annotation) or "ImageFolder" in str(setting.annotation):
            yield f"{section}.{name}"
