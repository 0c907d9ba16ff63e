"""Webdataset shards, parquet files, image folders with metadata: streamed, resumed, safe wherever they come from."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from sdlora.__main__ import main
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.images import scan
from sdlora.data.packed.samples import file_stem
from sdlora.data.packed.unpack import MARKER, packed_files, unpack
from sdlora.errors import DataError, MissingPackageError
from tests.support.dataset_pictures import fingerprint, picture, save_captioned
from tests.support.packed_files import captions, image_bytes, write_tar


def shard(first: int, count: int = 4) -> dict[str, bytes | tarfile.TarInfo]:
    """As img2dataset writes them: image, caption, and json with both and more."""
    members: dict[str, bytes | tarfile.TarInfo] = {}
    for number in range(first, first + count):
        members[f"{number:09d}.jpg"] = image_bytes(number)
        members[f"{number:09d}.json"] = json.dumps(
            {"caption": f"json {number}", "url": "x", "status": "success"}
        ).encode()
        members[f"{number:09d}.txt"] = f"picture {number}".encode()
    return members


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    """As `datasets` writes an Image column."""
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("text", pyarrow.string()), ("width", pyarrow.int64())])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=3)
    return path


def trained(folder: Path) -> dict[str, str | None]:
    """Captions as training reads them."""
    images = ImagesConfig(folder=folder, cache=False)
    return {record.path.name: record.caption for record in scan(images, CaptionsConfig(default="")).records}


# Webdataset


def test_shards_become_folders_that_training_reads(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number:05d}.tar", shard(10 * number))
    result = unpack(tmp_path, tmp_path / "out")
    assert (result.images, result.uncaptioned, result.num_unusable) == (8, 0, 0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"00000-00000", "00001-00001", MARKER}
    assert trained(tmp_path / "out") == {
        f"{number:09d}.jpg": f"picture {number}" for number in (*range(4), *range(10, 14))
    }
    assert (tmp_path / "out/00000-00000/000000002.jpg").read_bytes() == image_bytes(2)


def test_captions_come_from_json_too_and_compressed_shards_are_read(tmp_path: Path) -> None:
    members: dict[str, bytes | tarfile.TarInfo] = {
        "a/cat.png": image_bytes(1, "PNG"),
        "a/cat.json": json.dumps({"text": ["a cat", "another"]}).encode(),
        "a/dog.jpeg": image_bytes(2),
        "a/dog.seg.png": b"not this one",
        "a/dog.cls": b"3",
        "a/boat.webp": image_bytes(3, "WEBP"),
        "a/boat.json": b"{broken",
        "b/words.txt": b"no image",
    }
    path = write_tar(tmp_path / "10_set.tar.gz", members, "w:gz")
    result = unpack(path, tmp_path / "out")
    assert (result.images, result.uncaptioned) == (3, 2)
    assert captions(tmp_path / "out") == {"a_cat": "a cat"}
    assert (tmp_path / "out/00000-10_set/a_dog.jpg").is_file(), "no folder that reads as ten repeats"
    assert {why: str(names) for why, names in result.unused.items()} == {
        "no JSON": "a/boat.json",
        "neither an image nor a caption by its ending": "a/dog.cls",
        "a further part of a sample that has an image": "a/dog.seg.png",
        "a caption without an image of its name": "b/words.txt",
    }
    assert str(result.with_others) == "a/cat"


def test_nothing_in_an_archive_reaches_outside_the_folder(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("zero.jpg")
    device.type = tarfile.CHRTYPE
    members: dict[str, bytes | tarfile.TarInfo] = {
        "../../escaped.jpg": image_bytes(1),
        "/absolute/path.jpg": image_bytes(2),
        "..\\windows\\con.jpg": image_bytes(3),
        "link.jpg": link,
        "zero.jpg": device,
        "._mac.jpg": b"Mac OS X",
        "script.jpg": b"#!/bin/sh",
        "page.html": b"<script>",
        "same.jpg": image_bytes(4),
        "other.jpg": image_bytes(5),
        "SAME.jpg": image_bytes(6),
    }
    inner = tmp_path / "deep" / "deeper"
    inner.mkdir(parents=True)
    result = unpack(write_tar(tmp_path / "x.tar", members), inner / "out")
    assert {path.name for path in (inner / "out/00000-x").iterdir()} == {
        "escaped.jpg",
        "absolute_path.jpg",
        "windows_con.jpg",
        "same.jpg",
        "other.jpg",
        "SAME-2.jpg",
    }
    assert {path.name for path in tmp_path.rglob("*.jpg")} == {path.name for path in (inner / "out").rglob("*.jpg")}
    assert [(each.name, each.reason) for each in result.unusable] == [
        ("script", "not a JPEG, PNG, WebP, AVIF, BMP or GIF image")
    ]
    assert {why: str(names) for why, names in result.unused.items()} == {
        "a link or a device, not a file": "link.jpg, zero.jpg",
        "hidden": "._mac.jpg",
        "neither an image nor a caption by its ending": "page.html",
    }


@pytest.mark.parametrize(("name", "stem"), [("con", "_con"), ("..", "_"), ("a b/ü.x", "a_b_ü_x"), ("LPT1", "_LPT1")])
def test_names_that_a_file_system_refuses_are_changed(name: str, stem: str) -> None:
    assert file_stem(name) == stem


def test_a_damaged_archive_gives_what_is_before_the_damage(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", shard(0)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    result = unpack(tmp_path / "cut.tar", tmp_path / "out")
    assert 1 <= result.images < 4
    assert "the archive is damaged behind" in result.unusable[-1].reason


KILLED = """
import os, signal, sys
from pathlib import Path
from sdlora import atomic
from sdlora.data.packed import unpack

write, calls = atomic.write_bytes, []

def counted(path, content, **how):
    calls.append(path)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content, **how)

atomic.write_bytes = counted
unpack.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_killed_midway_it_goes_on_and_loses_and_repeats_nothing(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(2):
        if kind == "tar":
            write_tar(source / f"{number}.tar", shard(10 * number))
        else:
            rows = [
                {"image": {"bytes": image_bytes(10 * number + row), "path": f"{row}.jpg"}, "text": f"text {row}"}
                for row in range(4)
            ]
            write_parquet(source / f"{number}.parquet", rows)
    unpack(source, tmp_path / "whole")
    arguments = [str(source), str(tmp_path / "out"), "14"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments])
    assert killed.returncode == -signal.SIGKILL
    images = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")}
    assert 4 < len(images) < 8
    result = unpack(source, tmp_path / "out")
    assert (result.images, result.before) == (8 - len(images), len(images) - 4)
    assert {path: path.stat().st_mtime_ns for path in images} == images
    wanted = fingerprint(tmp_path / "whole")
    assert fingerprint(tmp_path / "out") == wanted
    with pytest.raises(DataError, match="holds this import already, finished"):
        unpack(source, tmp_path / "out")


def test_an_image_that_a_power_cut_left_too_short_is_written_again(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "a.tar", shard(0))
    unpack(source, tmp_path / "out")
    wanted = fingerprint(tmp_path / "out")
    marker = tmp_path / "out" / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "done": []}))
    first = min((tmp_path / "out").rglob("*.jpg"))
    first.write_bytes(first.read_bytes()[:100])
    result = unpack(source, tmp_path / "out")
    assert (result.images, result.before) == (1, 3)
    assert fingerprint(tmp_path / "out") == wanted


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(0, 1))
    write_tar(tmp_path / "b.tar", shard(5, 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else already"):
        unpack(tmp_path / "a.tar", tmp_path / "mine")
    unpack(tmp_path / "a.tar", tmp_path / "out")
    with pytest.raises(DataError, match=r"holds another import, of .*a\.tar"):
        unpack(tmp_path / "b.tar", tmp_path / "out")


def test_a_pattern_names_shards_and_missing_ones_are_told(tmp_path: Path) -> None:
    assert [path.name for path in packed_files(tmp_path / "set-{008..010}.tar")] == [
        "set-008.tar",
        "set-009.tar",
        "set-010.tar",
    ]
    write_tar(tmp_path / "set-008.tar", shard(0, 1))
    with pytest.raises(DataError, match=r"lacks .*set-009\.tar, .*set-010\.tar"):
        unpack(tmp_path / "set-{008..010}.tar", tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no \.tar, \.tar\.gz, \.tgz, \.parquet files"):
        unpack(tmp_path / "out", tmp_path / "more")


def test_memory_stays_flat_however_long_the_shard_is(tmp_path: Path) -> None:
    content = image_bytes(1, "BMP")
    peaks = []
    for count in (20, 200):
        members: dict[str, bytes | tarfile.TarInfo] = {f"{number}.bmp": content for number in range(count)}
        path = write_tar(tmp_path / f"{count}.tar", members)
        tracemalloc.start()
        unpack(path, tmp_path / f"out{count}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2 * len(content)


# Parquet


def test_parquet_files_of_datasets_become_folders(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": {"bytes": image_bytes(1, "PNG"), "path": "../up/cat.png"}, "text": "a cat", "width": 96},
        {"image": {"bytes": image_bytes(2), "path": None}, "text": None, "width": 96},
        {"image": {"bytes": None, "path": "/data/far.jpg"}, "text": "far", "width": 96},
        {"image": {"bytes": b"nothing", "path": None}, "text": "broken", "width": 96},
    ]
    source = tmp_path / "set"
    (source / "data").mkdir(parents=True)
    write_parquet(source / "data" / "train-00000-of-00001.parquet", rows)
    result = unpack(source, tmp_path / "out")
    assert (result.images, result.uncaptioned, result.num_unusable) == (2, 1, 2)
    assert captions(tmp_path / "out") == {"00000000-cat": "a cat"}
    assert result.unusable[0].reason == "the file holds no bytes of the image, only its name"
    assert {path.name for path in (tmp_path / "out/00000-train-00000-of-00001").iterdir()} == {
        "00000000-cat.png",
        "00000000-cat.txt",
        "00000001.jpg",
    }


def test_the_column_of_captions_can_be_named_and_a_missing_one_is_told_first(tmp_path: Path) -> None:
    table = pyarrow.table({"jpg": [image_bytes(1)], "label": ["a cat"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"no column called text or caption or prompt: it has jpg, label\. .*--caption-col"
    ):
        unpack(tmp_path / "a.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    unpack(tmp_path / "a.parquet", tmp_path / "out", caption_column="label")
    assert captions(tmp_path / "out") == {"00000000": "a cat"}
    assert unpack(tmp_path / "a.parquet", tmp_path / "none", caption_column="").uncaptioned == 1
    parquet.write_table(pyarrow.table({"label": ["a cat"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="has no column of images"):
        unpack(tmp_path / "b.parquet", tmp_path / "other")
    (tmp_path / "c.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"c\.parquet can't be read: not a parquet file"):
        unpack(tmp_path / "c.parquet", tmp_path / "other")


def test_of_several_columns_the_usual_one_is_taken_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {
        "control": [image_bytes(1), image_bytes(2)],
        "Image": [image_bytes(3), image_bytes(4)],
        "prompt": ["make it red", "a lamp"],
        "text": ["a cat", ""],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert run(tmp_path / "a.parquet", "--out", tmp_path / "out", monkeypatch=monkeypatch) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "images are taken from the column Image, not from control" in output
    assert "captions are taken from the column text; where it is empty, from prompt" in output
    assert "1 image with several captions" in output
    assert captions(tmp_path / "out") == {"00000000": "a cat", "00000001": "a lamp"}
    (image, _) = sorted((tmp_path / "out").rglob("*.jpg"))
    assert image.read_bytes() == image_bytes(3)
    result = unpack(tmp_path / "a.parquet", tmp_path / "other", caption_column="prompt")
    assert captions(tmp_path / "other") == {"00000000": "make it red", "00000001": "a lamp"}
    assert result.with_others.number == 0


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", [])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"\[parquet\]"):
        unpack(tmp_path / "a.parquet", tmp_path / "out")


# Image folders


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_of_an_image_folder_is_read_by_training(tmp_path: Path, kind: str) -> None:
    save_captioned(picture(1), tmp_path / "train" / "a.png", None)
    save_captioned(picture(2), tmp_path / "train" / "sub" / "b.png", None)
    rows = [{"file_name": "a.png", "prompt": "a cat, red"}, {"file_name": "sub/b.png", "prompt": "a dog\nsitting"}]
    path = tmp_path / "train" / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif kind == "csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "prompt"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert trained(tmp_path) == {"a.png": "a cat, red", "b.png": "a dog\nsitting"}


def test_a_metadata_file_without_captions_says_so_once(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", None)
    rows = "".join(f"{number}.png,cat\n" for number in range(50))
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n{rows}", "utf-8")
    with pytest.raises(
        DataError, match=r"metadata\.csv, line 2: expected an object with 'file_name' and 'text'"
    ) as found:
        trained(tmp_path)
    assert "and 40 more rows like these" in str(found.value)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"metadata\.parquet can't be read: not a parquet file"):
        trained(tmp_path)


# The command


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["sdlora", "dataset", "import", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return int(exit_info.value.code or 0)


def test_the_command_unpacks_and_tells_how_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", {**shard(0, 2), "bad.jpg": b"no"})
    assert run(tmp_path / "a.tar", monkeypatch=monkeypatch) == 2
    assert "is unpacked into a folder of images: name it with --out" in capsys.readouterr().err
    assert run(tmp_path / "a.tar", "--out", tmp_path / "out", "--captions-for", tmp_path, monkeypatch=monkeypatch) == 2
    assert "--captions-for has no effect" in capsys.readouterr().err
    events = tmp_path / "events.jsonl"
    monkeypatch.setitem(os.environ, "SDLORA_EVENTS", str(events))
    assert run(tmp_path / "a.tar", "--out", tmp_path / "out", monkeypatch=monkeypatch) == 0
    output = capsys.readouterr().out
    assert "left out: bad: not a JPEG" in output
    assert "2 images unpacked, 1 left out" in output
    assert f"--set images.folder={tmp_path / 'out'}" in output
    assert '"stage":"unpacking (MiB)"' in events.read_text()


def test_what_holds_no_image_is_no_dataset_and_columns_that_do_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", {"bad.jpg": b"no"})
    assert run(tmp_path / "a.tar", "--out", tmp_path / "b", "--caption-column", "x", monkeypatch=monkeypatch) == 2
    assert "--caption-column has no effect" in capsys.readouterr().err
    assert run(tmp_path / "a.tar", "--out", tmp_path / "out", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert "a.tar holds no image that can be used" in said.err.replace("\n", " ")
    assert "train on them" not in said.out
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"image": [image_bytes(1)], "text": [7]})
    parquet.write_table(table, tmp_path / "labels.parquet")
    assert run(tmp_path / "labels.parquet", "--out", tmp_path / "labels", monkeypatch=monkeypatch) == 0
    assert "captions are text, which the column text (int64) has not" in capsys.readouterr().out.replace("\n", " ")


def test_an_image_folder_needs_no_unpacking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_captioned(picture(1), tmp_path / "a.png", None)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\n", "utf-8")
    assert run(tmp_path, monkeypatch=monkeypatch) == 0
    output = capsys.readouterr().out
    assert "# Imported from Hugging Face image folder" in output
    assert f"folder: {tmp_path}" in output
    assert run(tmp_path, "--caption-column", "text", monkeypatch=monkeypatch) == 2
    assert "--caption-column is for .parquet files" in capsys.readouterr().err
