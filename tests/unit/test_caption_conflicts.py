"""What is written of an image twice, or where it isn't read: refused, or said with what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.images import ScanResult, scan
from sdlora.data.lint.check import check
from sdlora.errors import DataError


def dataset(folder: Path, **contents: object) -> Path:
    """A folder with `a.png` and `b.png` and these files, `__` in a name standing for its dot."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
    for name, content in contents.items():
        rows = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        (folder / name.replace("__", ".")).write_text(rows, encoding="utf-8")
    return folder


def scanned(folder: Path) -> ScanResult:
    return scan(ImagesConfig(folder=folder, cache=False), CaptionsConfig())


def checked(folder: Path, rule: str) -> list[str]:
    config = files.load(None, ["images.resolution=64", "images.cache=false"])
    return [finding.message for finding in check(config, [folder]).of_rule(rule)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            "file_name,text\na.png,a cat, red\nb.png,a dog\n",
            "metadata.csv, line 2 has 3 values for 2 columns: put quotes around a caption with commas",
        ),
        (
            'file_name,text,loss_weight\na.png,"two\nlines",1\nb.png,a dog\n',
            "metadata.csv, line 4 has 2 values for 3 columns: fill in the rest",
        ),
        ("file_name,text,text\na.png,one,two\n", "metadata.csv, line 1 names the column 'text' twice"),
        (
            "file_name;text\na.png;a cat, red\n",
            "metadata.csv, line 1 names no column file_name, only: file_name;text. Commas part the columns",
        ),
    ],
)
def test_a_table_row_of_another_length_is_refused_with_its_line(tmp_path: Path, rows: str, words: str) -> None:
    folder = dataset(tmp_path, metadata__csv=rows)
    with pytest.raises(DataError) as refused:
        scanned(folder)
    assert words in str(refused.value)
    assert any(words in message for message in checked(folder, "caption-unreadable"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata__jsonl", '{"file_name": "a.png", "text": "one", "text": "two"}', "line 1 sets 'text' twice"),
        ("metadata__json", '{"a": {"caption": "one"}, "a": {"caption": "two"}}', "the file sets 'a' twice"),
    ],
)
def test_a_key_that_is_set_twice_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        scanned(dataset(tmp_path, **{name: text}))


def test_quoted_commas_and_empty_lines_are_no_surplus(tmp_path: Path) -> None:
    result = scanned(dataset(tmp_path, metadata__csv='file_name,text\n\na.png,"a cat, red"\nb.png,a dog\n\n'))
    assert [record.caption for record in result.records] == ["a cat, red", "a dog"]
    assert result.notes == []


def test_which_of_two_different_captions_is_trained_is_said(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": "from the row"}, {"file_name": "b.png", "text": "T", "caption": "C"}]
    folder = dataset(tmp_path, a__txt="from the file", metadata__jsonl=rows)
    result = scanned(folder)
    assert [record.caption for record in result.records] == ["from the file", "T"]
    said = [
        "metadata.jsonl, b.png: several captions in one row: the first of text, caption, prompt is trained",
        "a.png: the .txt file beside it is trained, not what its metadata file says otherwise",
    ]
    assert result.notes == said
    assert checked(folder, "caption-metadata") == said


def test_of_two_metadata_files_the_nearer_one_counts_and_that_is_said(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    rows = [{"file_name": f"inner/{name}.png", "text": "far"} for name in "ab"]
    dataset(inner, metadata__jsonl=[{"file_name": "a.png", "text": "near"}, {"file_name": "b.png", "text": "far"}])
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    said = ["inner/a.png: the metadata file nearest to it is trained, not what one further up says otherwise"]
    assert scanned(tmp_path).notes == said


def test_captions_that_agree_are_not_talked_about(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": "same"}, {"file_name": "b.png", "text": "T", "caption": "T "}]
    assert scanned(dataset(tmp_path, a__txt="same\n", metadata__jsonl=rows)).notes == []


def test_columns_that_nothing_reads_are_named_once(tmp_path: Path) -> None:
    rows = [{"file_name": f"{name}.png", "text": name, "repeats": 5, "mask": "m.png"} for name in "ab"]
    folder = dataset(tmp_path, metadata__jsonl=rows)
    said = [
        "metadata.jsonl, repeats, mask: columns that are not read; those that are: file_name, text, caption, prompt, "
        "loss_weight"
    ]
    assert scanned(folder).notes == said
    assert checked(folder, "caption-metadata") == said
