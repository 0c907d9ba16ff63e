"""Captions from the metadata files of Hugging Face image folders: metadata.jsonl, .csv, .parquet and .json.

Each has one row an image, with its path in `file_name`, its caption in one of the columns of `CAPTION_COLUMNS` and, if
wanted, a factor on its loss in `loss_weight`. A metadata.json holds a list of such rows, or (sd-scripts) an object of
`{path: {caption, tags}}`.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.constants import MIB
from sdlora.errors import MissingPackageError
from sdlora.text_files import parse_json, read_text, repeated_key
from sdlora.words import count, first_few

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "metadata.json")
CAPTION_COLUMNS = ("text", "caption", "prompt")
"""Where captions are looked for, the first one winning."""

_READ_COLUMNS = ("file_name", *CAPTION_COLUMNS, "loss_weight")
_PROBLEMS_TOLD = 10
NAMES_TOLD = 5

Row = tuple[str, Any]
"""Where the row stands, in words, and its values by column; a text was not understood, a ValueError says why not."""


@dataclass(frozen=True)
class ImageText:
    """What a row says about its image."""

    caption: str | None
    loss_weight: float | None = None


ImageTexts = dict[str, ImageText]
"""By the image's path below the metadata file's folder."""


def read_metadata(path: Path) -> tuple[ImageTexts, list[str], list[str]]:
    """What a metadata file says of each image, a sentence for each wrong row, and what was read in one of several ways.

    Raises UnreadableTextError, OSError, and MissingPackageError for a parquet file without pyarrow.
    """
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix == ".csv":
        rows = _csv_rows(read_text(path))
    elif path.suffix == ".json":
        rows = _json_array_rows(read_text(path))
    else:
        rows = _json_rows(read_text(path))
    return _texts(rows)


def caption_of(values: Mapping[str, Any]) -> str | None:
    """The caption among a row's values: of a list the first; "" for an empty one, None when there is none."""
    found = None
    for value in _in_caption_columns(values):
        if value.strip():
            return value
        found = found or value  # another column may hold what this one leaves empty
    return found


def has_several(values: Mapping[str, Any]) -> bool:
    """Whether a row has another caption than the one that `caption_of` gives, in another column or in its list."""
    found = (values.get(column) for column in CAPTION_COLUMNS)
    texts = [text for value in found for text in (value if isinstance(value, list) else [value])]
    return len({text.strip() for text in texts if isinstance(text, str) and text.strip()}) > 1


def _captions_in(values: Mapping[str, Any]) -> set[str]:
    """The different captions of a row, empty ones left out."""
    return {text for value in _in_caption_columns(values) if (text := value.strip())}


def _in_caption_columns(values: Mapping[str, Any]) -> Iterator[str]:
    for column in CAPTION_COLUMNS:
        value = values.get(column)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str):
            yield value


class ImageRows:
    """What a metadata file says of the images below its folder, found by each way in which tools name them.

    A row's name counts as it stands, in other Unicode or other capitals (macOS and Windows take them for the same), as
    an absolute path, and without its ending (sd-scripts). What matches no image can be asked for in the end.
    """

    def __init__(self, texts: ImageTexts) -> None:
        self.texts = texts
        self._left = dict.fromkeys(texts)
        self._alike: dict[str, list[str]] = defaultdict(list)
        for name in texts:
            self._alike[_alike(name)].append(name)

    def of(self, image: Path, folder: Path) -> ImageText | None:
        """The row of an image; `folder` is the metadata file's own."""
        name = image.relative_to(folder).as_posix()
        bare = name.removesuffix(image.suffix)
        names = [own for own in (name, image.as_posix()) if own in self.texts]
        names = names or self._alike.get(_alike(name), []) or self._alike.get(_alike(bare), [])
        if len(names) != 1:
            return None
        self._left.pop(names[0], None)
        return self.texts[names[0]]

    @property
    def left(self) -> list[str]:
        """The names of the rows that no image asked for."""
        return list(self._left)


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _texts(rows: Iterable[Row]) -> tuple[ImageTexts, list[str], list[str]]:
    texts: ImageTexts = {}
    problems: list[str] = []
    several: dict[str, None] = {}
    twice: dict[str, None] = {}
    differing: dict[str, None] = {}
    unread: dict[str, None] = {}
    for where, values in rows:
        if isinstance(values, ValueError):
            problems.append(f"{where} {values}")
            continue
        file_name = values.get("file_name") if isinstance(values, dict) else None
        caption = caption_of(values) if isinstance(values, dict) else None
        weight = values.get("loss_weight") if isinstance(values, dict) else None
        if weight in (None, ""):
            weight = None
        elif (weight := _positive(weight)) is None:
            problems.append(f"{where}: loss_weight must be a number above 0, up to 100; got {values['loss_weight']!r}")
            if caption is None:
                continue  # with one the row still counts, or its image would be told of as one without a caption
        if isinstance(file_name, str) and (caption is not None or weight is not None):
            # Rows made on Windows have backslashes, and "./a.png" is a.png.
            name = posixpath.normpath(file_name.replace("\\", "/"))
            if name in texts:
                twice[name] = None
            if any(isinstance(values.get(column), list) and len(values[column]) > 1 for column in CAPTION_COLUMNS):
                several[name] = None
            if len(_captions_in(values)) > 1:
                differing[name] = None
            unread |= dict.fromkeys(str(column) for column in values if column not in _READ_COLUMNS)
            texts[name] = ImageText(caption, weight)
        else:
            shown = values if isinstance(values, str) else json.dumps(values, default=str, ensure_ascii=False)
            problems.append(
                f"{where}: expected an object with 'file_name' and 'text' (or 'caption', 'prompt'), got: {shown[:80]}"
            )
    if len(problems) > _PROBLEMS_TOLD:
        problems[_PROBLEMS_TOLD:] = [f"and {len(problems) - _PROBLEMS_TOLD} more rows like these"]
    notes = [
        f"{first_few(names, NAMES_TOLD)}: {words}"
        for names, words in (
            (list(several), "of a list of captions the first is trained; captions.alternatives takes several"),
            (list(twice), "named by several rows, of which the last counts"),
            (list(differing), f"several captions in one row: the first of {', '.join(CAPTION_COLUMNS)} is trained"),
            (list(unread), f"columns that are not read; those that are: {', '.join(_READ_COLUMNS)}"),
        )
        if names
    ]
    return texts, problems, notes


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number <= 100 else None


def _json_array_rows(text: str) -> Iterator[Row]:
    try:
        content = parse_json(text)
    except ValueError as error:
        yield "the file", f"no JSON ({error})"
        return
    if key := repeated_key(text):
        yield "the file", ValueError(f"sets '{key}' twice")
        return
    if isinstance(content, dict):
        for name, entry in content.items():
            if isinstance(entry, dict):
                # As sd-scripts reads it: the caption, then its tags.
                tags = entry.get("tags")
                joined = ", ".join(map(str, tags)) if isinstance(tags, list) else tags
                captions = entry.get("caption")
                captions = captions if isinstance(captions, list) else [captions]
                texts = [", ".join(str(part) for part in (caption, joined) if part) for caption in captions]
                rest = {key: value for key, value in entry.items() if key not in ("caption", "tags")}
                yield f"'{name}'", {**rest, "file_name": name, "text": texts or str(joined or "")}
            else:
                yield f"'{name}'", entry
    elif isinstance(content, list):
        for number, values in enumerate(content, start=1):
            yield f"entry {number}", values
    else:
        yield "the file", f"a list of rows, not {type(content).__name__}"


def _json_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                values = parse_json(line)
                key = repeated_key(line)
                yield f"line {number}", ValueError(f"sets '{key}' twice") if key else values
            except ValueError:
                yield f"line {number}", line.strip()


def _csv_rows(text: str) -> Iterator[Row]:
    # A quoted caption may hold line ends, which the reader must get as they are.
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        columns = next(reader, [])
        if problem := _header_problem(columns):
            yield f"line {reader.line_num}", ValueError(problem)
            return
        for values in filter(None, reader):  # an empty line is no row
            if len(values) == len(columns):
                yield f"line {reader.line_num}", dict(zip(columns, values, strict=True))
            else:
                # Too many are mostly the rest of a caption: to leave it out would train half of what was written.
                remedy = "put quotes around a caption with commas" if len(values) > len(columns) else "fill in the rest"
                seen = f"{count(len(values), 'value')} for {count(len(columns), 'column')}"
                yield f"line {reader.line_num}", ValueError(f"has {seen}: {remedy}")
    except csv.Error as error:
        yield f"line {reader.line_num + 1} and all after it", f"no CSV ({error})"


def _header_problem(columns: Sequence[str]) -> str | None:
    if columns and "file_name" not in columns:
        return f"names no column file_name, only: {', '.join(columns)}. Commas part the columns, as in file_name,text"
    twice = next((column for column in columns if columns.count(column) > 1), None)
    return None if twice is None else f"names the column '{twice}' twice"


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = open_parquet(path)
    # No other column is read: one with the images themselves would be gigabytes.
    columns = [name for name in _READ_COLUMNS if name in parquet.schema_arrow.names]
    unread = dict.fromkeys(name for name in parquet.schema_arrow.names if name not in columns)
    number = 0
    for batch in parquet.iter_batches(columns=columns):
        for values in batch.to_pylist():
            number += 1
            yield f"row {number}", values | unread


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
