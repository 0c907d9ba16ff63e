"""`sdlora dataset ...` as a user meets it, and the contact sheet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from sdlora.config import files
from sdlora.data.buckets import assign
from sdlora.data.crops import prepare_pixels
from sdlora.data.fix.caption_import import plan_captions
from sdlora.data.images import scan
from sdlora.data.sheet import draw_sheet, trained_picture
from tests.support.dataset_pictures import fingerprint, picture, save_captioned

SMALL = ("--set", "images.resolution=256")


@pytest.fixture
def run(cli: Any) -> Callable[..., tuple[int, str, str]]:
    """Calls `sdlora dataset`; gives exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        result = cli("dataset", *arguments)
        return result.code, result.output, result.errors

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good pictures and one whose caption has the wrong ending."""
    for number in range(3):
        save_captioned(picture(number), tmp_path / "set" / f"{number}.png", f"thing [{number}], bright")
    (tmp_path / "set" / "2.txt").rename(tmp_path / "set" / "2.caption")
    return tmp_path / "set"


@pytest.mark.slow
def test_help_and_check_load_no_torch(folder: Path) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from sdlora.cli import app\n"
        "suggest = ['suggest', sys.argv[1], '--for', 'style']\n"
        "for arguments in (suggest, ['dataset', '--help'], ['dataset', 'check', sys.argv[1]]):\n"
        "    result = CliRunner().invoke(app, arguments)\n"
        "assert 'caption-extension' in result.output, result.output\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_check_shows_findings_and_exits_with_1_for_errors(run, folder: Path) -> None:
    code, output, _ = run("check", folder, *SMALL)
    assert code == 1
    text = " ".join(output.split())
    assert "error caption-extension 1 .caption files are not read: rename them to .txt 2.caption" in text
    assert "fix: --rules caption-extension" in text
    assert "3 images: 1 error" in text


def test_check_exits_with_0_for_a_clean_set(run) -> None:
    assert run("check", "--preset", "demo.yaml")[:2] == (0, "24 images: nothing to fix\n")


def test_check_writes_json_and_a_page(run, folder: Path, tmp_path: Path) -> None:
    code, output, _ = run("check", folder, *SMALL, "--json", "--html", tmp_path / "report.html")
    assert code == 1
    report = json.loads(output)
    assert report["counts"] == {"error": 1, "warning": 0, "note": 0}
    assert report["findings"][0]["files"] == [str(folder / "2.caption")]
    assert "caption-extension" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_check_without_a_folder_says_what_is_missing(run) -> None:
    code, _, errors = run("check")
    assert code == 2
    assert "images.folder is not set" in errors


def test_fix_shows_then_makes_and_undo_takes_back(run, folder: Path) -> None:
    before = fingerprint(folder)
    code, output, _ = run("fix", folder, "--rules", "all")
    assert code == 0
    assert "caption-extension: 2.txt: caption: thing [2], bright" in output
    assert "2 changes would be made; add --apply to make them" in output
    assert fingerprint(folder) == before
    code, output, _ = run("fix", folder, "--rules", "caption-extension,duplicate-tags", "--apply")
    assert "2 changes made; originals are in" in output
    assert (folder / "2.txt").read_text(encoding="utf-8") == "thing [2], bright"
    assert run("check", folder, *SMALL)[0] == 0
    code, output, _ = run("undo", folder)
    assert "undone: 2 changes of" in output
    assert fingerprint(folder) == before


def test_fix_without_rules_says_which_apply_here_and_changes_nothing(run, folder: Path) -> None:
    before = fingerprint(folder)
    code, output, errors = run("fix", folder, "--apply")
    assert code == 2
    said = " ".join(f"{output}{errors}".split())
    assert f"or --rules all; in {folder} apply: caption-extension (2 changes)" in said
    assert fingerprint(folder) == before
    run("fix", folder, "--rules", "all", "--apply")
    assert "none has anything to change" in run("fix", folder)[2]


def test_a_fix_that_does_not_exist_is_refused(run, folder: Path) -> None:
    code, _, errors = run("fix", folder, "--rules", "sharpen")
    assert code == 2
    assert "'sharpen' has no fix" in errors


def test_edit_shows_then_makes(run, folder: Path) -> None:
    assert "2 changes would be made" in run("edit", folder, "BRIGHT", "dark", "-i")[1]
    run("edit", folder, "bright", "dark", "--apply")
    assert (folder / "0.txt").read_text(encoding="utf-8") == "thing [0], dark"
    assert "nothing to change" in run("edit", folder, "bright", "dark")[1]
    assert "no changes to undo" in run("undo", folder.parent)[2]


def test_edit_names_the_captions_that_it_does_not_reach(run, folder: Path) -> None:
    (folder / "0.txt").write_bytes(b"caf\xe9, bright")
    (folder / "1.txt").rename(folder / "1.caption")
    output = " ".join(run("edit", folder, "bright", "dark")[1].split())
    assert "left alone: 0.txt is not UTF-8 text" in output
    assert "left alone: 2 captions are not read, as captions.extension is .txt: 1.caption, 2.caption" in output


def test_a_sheet_is_written(run, folder: Path, tmp_path: Path) -> None:
    code, output, _ = run("sheet", folder, *SMALL, "--out", tmp_path / "sheet.png", "--columns", 2)
    assert code == 0
    assert "sheet.png" in output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (420, 612)


def test_the_sheet_shows_what_training_sees(folder: Path) -> None:
    config = files.load(None, ["images.resolution=128", f"images.folder={folder}", "captions.default=x"])
    save_captioned(picture(5, (500, 220)), folder / "wide.png", "wide")
    for item in assign(scan(config.images, config.captions).records, config.images):
        trained = prepare_pixels(
            item.record, item.placement, flip=False, crop_xy=None, background=config.images.background
        )
        pixels_HWC = ((trained.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(numpy.uint8)
        assert (numpy.asarray(trained_picture(item, config)) == pixels_HWC).all()


def test_masked_parts_are_tinted_in_the_sheet(tmp_path: Path) -> None:
    save_captioned(Image.new("RGB", (128, 128), "white"), tmp_path / "a.png", "a cup")
    mask = Image.new("L", (128, 128), 255)
    mask.paste(0, (0, 0, 64, 128))
    mask.save(tmp_path / "a-masklabel.png")
    config = files.load(None, ["images.resolution=128", "images.mask=file", f"images.folder={tmp_path}"])
    (item,) = assign(scan(config.images, config.captions).records, config.images)
    tinted = trained_picture(item, config)
    assert tinted.getpixel((100, 64)) == (255, 255, 255)
    red, green, _ = tinted.getpixel((20, 64))
    assert red > green + 80
    assert draw_sheet(config).width == 216


def test_import_prints_or_writes_yaml_that_loads(run, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "concepts.json"
    source.write_text(json.dumps([{"path": str(folder), "colour": 2}]), encoding="utf-8")
    assert "# Imported from OneTrainer concepts" in run("import", source)[1]
    code, output, _ = run("import", source, "--out", tmp_path / "ours.yaml")
    assert code == 0
    assert "not taken over: colour=2: no counterpart" in output
    assert files.load(tmp_path / "ours.yaml").images.folder == folder
    code, _, errors = run("import", source, "--out", tmp_path / "ours.yaml")
    assert code == 2
    assert "--force replaces it" in errors
    assert run("import", source, "--out", tmp_path / "ours.yaml", "--force")[0] == 0


def test_captions_of_a_metadata_file_are_written_and_undone(run, folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    source = tmp_path / "meta.json"
    entries = {"2": {"caption": "a cap"}, "0": {"caption": "stays out"}, "far/away.png": {"caption": "?"}}
    source.write_text(json.dumps(entries), encoding="utf-8")
    _, output, _ = run("import", source, "--captions-for", folder)
    assert "no image: far/away.png" in output
    assert "1 image with another caption in a .txt file, which stays: 0.png" in " ".join(output.split())
    assert (folder / "2.txt").read_text(encoding="utf-8") == "a cap"
    assert (folder / "0.txt").read_text(encoding="utf-8") == "thing [0], bright"
    run("undo", folder)
    assert fingerprint(folder) == before


@pytest.mark.parametrize("name", ["sub/2.png", "sub/2", r"C:\pictures\sub\2.png", "/elsewhere/2"])
def test_images_are_found_by_path_or_name(tmp_path: Path, name: str) -> None:
    image = save_captioned(picture(2), tmp_path / "sub" / "2.png", None)
    planned = plan_captions(tmp_path, {name: "a cap"})
    assert ([change.path for change in planned.changes], planned.unknown) == ([image.with_suffix(".txt")], [])


def numbered_pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        save_captioned(picture(number), folder / name, None)
    return folder


def planned_texts(folder: Path, captions: dict[str, str]) -> tuple[dict[str, str], list[str], dict[str, str]]:
    planned = plan_captions(folder, captions)
    texts = {
        change.path.relative_to(folder).as_posix(): change.content().decode()
        for change in planned.changes
        if change.content is not None
    }
    return texts, sorted(planned.unknown), planned.unclear


def test_captions_from_another_machine_go_to_the_folder_that_their_paths_end_in(tmp_path: Path) -> None:
    folder = numbered_pictures(tmp_path, "cats/p0.png", "dogs/p0.png", "dogs/p1.png")
    rows = {"/old/disk/cats/p0.png": "a cat", r"D:\old\dogs\p0.png": "a dog", "/old/disk/birds/p1.png": "a dog, too"}
    texts, unknown, unclear = planned_texts(folder, rows)
    assert texts == {"cats/p0.txt": "a cat", "dogs/p0.txt": "a dog", "dogs/p1.txt": "a dog, too"}
    assert (unknown, unclear) == ([], {})


def test_a_row_of_a_folder_that_is_not_there_takes_no_other_folders_picture(tmp_path: Path) -> None:
    folder = numbered_pictures(tmp_path, "dogs/p0.png", "dogs/p1.png", "cats/p1.png")
    rows = {"dogs/p0": "a dog", "birds/p0": "a bird", "fish/p1": "a fish"}
    assert planned_texts(folder, rows) == ({"dogs/p0.txt": "a dog"}, ["birds/p0", "fish/p1"], {})


def test_a_name_that_fits_two_pictures_and_two_rows_of_one_picture_are_told(tmp_path: Path, run) -> None:
    folder = numbered_pictures(tmp_path / "set", "cats/p0.png", "dogs/p0.png", "dogs/p1.png", "p2.png", "p2.jpg")
    rows = {"p0.png": "?", "/a/dogs/p1.png": "a dog", "/b/dogs/p1.png": "a bird", "/a/p2.png": "one", "/b/p2": "one"}
    texts, unknown, unclear = planned_texts(folder, rows)
    assert (texts, unknown) == ({"p2.txt": "one"}, ["/b/p2"])
    assert unclear["p0.png"] == "fits cats/p0.png, dogs/p0.png alike"
    assert unclear["/a/dogs/p1.png"] == unclear["/b/dogs/p1.png"] == "2 rows with different captions mean dogs/p1.png"
    (tmp_path / "meta.json").write_text(json.dumps({name: {"caption": text} for name, text in rows.items()}))
    _, output, _ = run("import", tmp_path / "meta.json", "--captions-for", folder)
    assert "unclear, so not taken over: p0.png: fits cats/p0.png, dogs/p0.png alike" in " ".join(output.split())
    assert not list(folder.glob("*/p0.txt"))
