"""Captions and masks that a person wrote and that aren't read as such: said by the run, the dry run and the check."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.captioning import CaptioningConfig
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.captioning.run import caption_folder
from sdlora.data.fix.changes import apply, undo
from sdlora.data.fix.fixes import plan_fixes
from sdlora.data.images import ScanResult, scan
from sdlora.data.lint.check import check
from sdlora.errors import DataError
from sdlora.events import Event, EventStream
from sdlora.training.inputs.images import find_images
from sdlora.training.preflight.remarks import remarks
from sdlora.training.preflight.suggestion import suggest

FOLDER = "10_ohwx cat"


def dataset(root: Path, *names: str, **contents: str) -> Path:
    """A folder called `10_ohwx cat` with these pictures and files (`__` stands for a dot); returns what it lies in."""
    folder = root / "set" / FOLDER
    folder.mkdir(parents=True)
    for number, name in enumerate(names or ("a.png",)):
        Image.new("RGB", (64, 64), (50 * number, 90, 200)).save(folder / name)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
    return root / "set"


def scanned(folder: Path, **captions: object) -> ScanResult:
    return scan(ImagesConfig(folder=folder, cache=False), CaptionsConfig(**captions))


def found_by_check(folder: Path, *settings: str) -> dict[str, str]:
    config = files.load(None, ["images.resolution=64", "images.cache=false", *settings])
    return {finding.rule: finding.message for finding in check(config, [folder]).findings}


class Kept:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def emit(self, event: Event) -> None:
        if event.kind == "warning_raised":
            self.warnings.append(event.message)

    def close(self) -> None: ...


UNREAD = {
    "a__caption": ("1 caption is not read, as captions.extension is .txt: a.caption", "caption-extension"),
    "a__TXT": ("1 caption is not read, as captions.extension is .txt: a.TXT", "caption-extension"),
    "a__png__txt": ("not read: a.png.txt (did you mean a.txt?)", "caption-orphan"),
    "A__txt": ("not read: A.txt (did you mean a.txt?)", "caption-orphan"),
    "a__txt": ("1 caption file is empty: a.txt", "caption-empty"),
    "a__json": ("1 file is not read for captions: a.json", "caption-unread"),
    "captions__csv": ("1 file is not read for captions: captions.csv", "caption-unread"),
}


@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("default", [None, "a photo"])
def test_a_caption_that_something_stands_in_for_is_said(tmp_path: Path, name: str, default: str | None) -> None:
    words, rule = UNREAD[name]
    folder = dataset(tmp_path, **{name: "" if name == "a__txt" else "a red cat"})
    stand_in = "the folder's name"
    if default is not None:
        stand_in = "captions.default"
        (folder / FOLDER).rename(folder / "cats")
    elif (folder / FOLDER / "a.txt").exists() and name in ("a__TXT", "A__txt"):
        pytest.skip("this file system takes both names for the same")
    result = scanned(folder, default=default)
    (said,) = result.warnings
    assert words in said
    assert said.endswith(f"; {stand_in} is trained instead")
    assert [item.path.name for item in result.left_out] == []
    told = found_by_check(folder, *([f"captions.default={default}"] if default else []))
    assert f"({stand_in} is trained instead)" in told[rule]


def test_the_run_the_dry_run_and_the_suggestion_warn(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "a.png", "b.png", a__caption="a red cat", b__txt="")
    config = files.load("demo.yaml", [f"images.folder={folder}"])
    warned = [text for label, text in remarks(config, find_images(config)) if label == "warning"]
    assert [text.partition(":")[0] for text in warned] == [
        "1 caption is not read, as captions.extension is .txt",
        "1 caption file is empty",
    ]
    assert set(warned) <= set(suggest(folder, "style", trigger="ohwx").remarks)


def test_captions_of_held_out_images_are_told_of_as_well(tmp_path: Path) -> None:
    folder = dataset(tmp_path, a__caption="a red cat")
    config = files.load("demo.yaml", [f"validation.folder={folder}"])
    assert any("a.caption" in text for label, text in remarks(config, find_images(config)) if label == "warning")


def test_files_that_replace_nothing_are_left_out_by_what_they_are(tmp_path: Path) -> None:
    folder = dataset(tmp_path, a__txt="a red cat", a__caption="another", a__json="{}")
    result = scanned(folder)
    assert result.warnings == []
    assert {item.path.name: item.reason for item in result.left_out} == {
        "a.caption": "a caption file of another ending than .txt (captions.extension)",
        "a.json": "not read; captions come from .txt files and metadata.jsonl",
    }


def test_an_empty_caption_is_said_where_a_metadata_row_stands_in_and_not_where_it_is_meant(tmp_path: Path) -> None:
    folder = dataset(tmp_path, a__txt="", metadata__jsonl='{"file_name": "a.png", "text": "a row"}')
    assert scanned(folder).warnings == [
        "1 caption file is empty: a.txt; the metadata file's caption is trained instead"
    ]
    (folder / FOLDER / "metadata.jsonl").unlink()
    (folder / FOLDER).rename(folder / "cats")
    assert scanned(folder, default="").warnings == []
    assert "caption-empty" not in found_by_check(folder, "captions.default=")


def test_missing_captions_name_tables_that_are_not_read(tmp_path: Path) -> None:
    folder = dataset(tmp_path, a__json="{}", captions__csv="file_name,text")
    (folder / FOLDER).rename(folder / "cats")
    with pytest.raises(DataError, match=r"2 files are not read for captions: a\.json, captions\.csv\. Those that are"):
        scanned(folder)


def test_the_advice_names_the_extension_that_is_set(tmp_path: Path) -> None:
    folder = dataset(tmp_path, a__txt="a red cat")
    (folder / FOLDER).rename(folder / "cats")
    with pytest.raises(DataError, match=r"Add cats/a\.tags beside it.*captions\.extension is \.tags: a\.txt"):
        scanned(folder, extension=".tags")
    told = found_by_check(folder, "captions.extension=.tags")
    assert told["caption-extension"] == ".txt files are not read: rename them to .tags"


def test_fixing_renames_captions_that_the_folders_name_stood_in_for(tmp_path: Path) -> None:
    folder = dataset(tmp_path, a__caption="a red cat")
    config = files.load(None, ["images.cache=false"])
    apply(folder, plan_fixes(folder, ["caption-extension"], config))
    assert [record.caption for record in scanned(folder).records] == ["a red cat"]
    undo(folder)
    assert (folder / FOLDER / "a.caption").read_text() == "a red cat"
    assert not (folder / FOLDER / "a.txt").exists()


def test_captioning_says_which_captions_it_does_not_see(tmp_path: Path) -> None:
    folder, kept = dataset(tmp_path, "a.png", "b.png", a__png__txt="a red cat", b__txt=""), Kept()
    caption_folder(folder, CaptioningConfig(), captioner=lambda images: ["x"] * len(images), events=EventStream([kept]))
    (said,) = kept.warnings
    assert "a.png.txt (did you mean a.txt?)" in said


def test_a_folder_inside_another_is_told_of_once(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "a.png", "a_mask.png", a__caption="a red cat")
    Image.new("RGB", (64, 64)).save(folder / "b.png")
    (folder / "b.txt").write_text("b", encoding="utf-8")
    images = ImagesConfig(folder=(folder, folder / FOLDER), cache=False)
    warnings = scan(images, CaptionsConfig()).warnings
    assert [sum(name in text for text in warnings) for name in ("a.caption", "a_mask.png")] == [1, 1]


def test_a_mask_by_another_name_is_told_from_an_image(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "a.png", "a_mask.png", "mask of my cat.png")
    words = "1 image looks like a mask by the name: a_mask.png. A mask is called a-masklabel.png"
    assert any(words in text for text in scanned(folder).warnings)
    assert words in found_by_check(folder)["misnamed-mask"]
    with pytest.raises(DataError, match=r"none of the 3 images has a NAME-masklabel\.png.*a-masklabel\.png"):
        scan(ImagesConfig(folder=folder, cache=False, mask="file"), CaptionsConfig())
    (folder / FOLDER).rename(folder / "cats")
    with pytest.raises(DataError, match=r"3 of 3 images have no caption.*a_mask\.png\. A mask is called a-masklabel"):
        scanned(folder)


def test_captions_in_a_folder_of_their_own_are_said_not_to_be_read(tmp_path: Path) -> None:
    root = dataset(tmp_path, "a.png", "b.png", b__txt="beside")
    (root / "captions").mkdir()
    for name in ("a.txt", "other.txt"):
        (root / "captions" / name).write_text("written", encoding="utf-8")
    found = scanned(root, default="a fox")
    (warning,) = found.warnings
    assert "1 caption is in another folder than the image, so not read: captions/a.txt. Move each beside" in warning
    assert [item.path.name for item in found.left_out] == ["other.txt"]
    for path in root.rglob("b.txt"):
        path.unlink()
    (root / FOLDER).rename(root / "plain")
    with pytest.raises(DataError, match=r"captions/a\.txt\. Move each beside its image\."):
        scanned(root)
