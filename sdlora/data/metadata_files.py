"""Captions from the metadata files of Hugging Face image folders: metadata.jsonl, metadata.csv and metadata.parquet.

Each has one row an image, with its path in `file_name` and its caption in one of the columns of `CAPTION_COLUMNS`.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdlora.constants import MIB
from sdlora.errors import MissingPackageError

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_COLUMNS = ("text", "caption", "prompt")
"""Where captions are looked for, the first one winning."""

_PROBLEMS_TOLD = 10

Row = tuple[str, Any]
"""Where the row stands, in words, and its values by column; anything but a mapping was not understood."""


def read_metadata(path: Path, decode: Callable[[bytes], str]) -> tuple[dict[str, str], list[str]]:
    """The captions of a metadata file by image (a path below the file's folder), and a sentence for each wrong row.

    decode: bytes to text, may raise UnicodeDecodeError. Raises that, OSError, and MissingPackageError for a parquet
    file without pyarrow.
    """
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix == ".csv":
        rows = _csv_rows(decode(path.read_bytes()))
    else:
        rows = _json_rows(decode(path.read_bytes()))
    return _captions(rows)


def caption_of(values: Mapping[str, Any]) -> str | None:
    """The caption among a row's values: of a list the first; None when there is none."""
    for column in CAPTION_COLUMNS:
        value = values.get(column)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str):
            return value
    return None


def _captions(rows: Iterable[Row]) -> tuple[dict[str, str], list[str]]:
    captions: dict[str, str] = {}
    problems: list[str] = []
    for where, values in rows:
        file_name = values.get("file_name") if isinstance(values, dict) else None
        caption = caption_of(values) if isinstance(values, dict) else None
        if isinstance(file_name, str) and caption is not None:
            captions[posixpath.normpath(file_name.replace("\\", "/"))] = caption
        else:
            shown = values if isinstance(values, str) else json.dumps(values, default=str, ensure_ascii=False)
            problems.append(
                f"{where}: expected an object with 'file_name' and 'text' (or 'caption', 'prompt'), got: {shown[:80]}"
            )
    if len(problems) > _PROBLEMS_TOLD:
        problems[_PROBLEMS_TOLD:] = [f"and {len(problems) - _PROBLEMS_TOLD} more rows like these"]
    return captions, problems


def _json_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError:
                yield f"line {number}", line.strip()


def _csv_rows(text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for values in reader:
        yield f"line {reader.line_num}", values


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = open_parquet(path)
    columns = [name for name in ("file_name", *CAPTION_COLUMNS) if name in parquet.schema_arrow.names]
    number = 0
    for batch in parquet.iter_batches(columns=columns):
        for values in batch.to_pylist():
            number += 1
            yield f"row {number}", values


def open_parquet(path: Path) -> Any:
    """An opened pyarrow.parquet.ParquetFile that reads little at a time.

    Raises MissingPackageError without pyarrow, OSError for a file that can't be read or isn't parquet.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError("Reading parquet files", "pyarrow", "parquet") from error
    try:
        return parquet.ParquetFile(path, buffer_size=MIB, pre_buffer=False)
    except pyarrow.ArrowInvalid as error:
        raise OSError(None, f"not a parquet file ({' '.join(str(error).split())})", str(path)) from error
