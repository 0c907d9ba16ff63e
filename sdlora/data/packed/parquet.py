"""Samples of a parquet file as Hugging Face `datasets` writes them: an image column and a text column.

An image is a struct {bytes, path} or plain bytes. The file is read a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sdlora.constants import MIB
from sdlora.data.metadata_files import CAPTION_COLUMNS, caption_of, open_parquet
from sdlora.data.packed.samples import LARGEST_BYTES, PackedSample, Unusable
from sdlora.errors import DataError

PARQUET_SUFFIX = ".parquet"
# A row holds a whole image, so eight of them may be some hundred megabytes.
_ROWS_AT_ONCE = 8


def read_parquet(
    path: Path, caption_column: str | None, on_share: Callable[[float], None] = lambda share: None
) -> Iterator[PackedSample | Unusable]:
    """The samples of a parquet file, in its order, called by their row and by their image's own name.

    on_share: called with how much of the file is read, 0 to 1. Raises what `check_columns` does.
    """
    file, image_column, captions = _open(path, caption_column)
    row = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[image_column, *captions]):
        for values in batch.to_pylist():
            yield _sample(f"{row:08d}", values[image_column], values[captions[0]] if captions else None)
            row += 1
        on_share(row / file.metadata.num_rows)


def check_columns(path: Path, caption_column: str | None) -> None:
    """Raise DataError when a parquet file has no image column or no such caption column, or can't be read.

    caption_column: by default the first of text, caption, prompt; "" takes no captions. Raises MissingPackageError
    without pyarrow.
    """
    _open(path, caption_column)


def _open(path: Path, caption_column: str | None) -> tuple[Any, str, Sequence[str]]:
    try:
        file = open_parquet(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    return file, *_columns(path, file.schema_arrow, caption_column)


def _columns(path: Path, schema: Any, caption_column: str | None) -> tuple[str, Sequence[str]]:
    """The image column, and the caption column or none."""
    import pyarrow

    names = list(schema.names)
    images = [field.name for field in schema if _holds_images(field.type, pyarrow)]
    if not images:
        raise DataError(f"{path} has no column of images (bytes, or a struct with bytes): it has {', '.join(names)}.")
    if caption_column == "":
        return images[0], []
    wanted = (caption_column,) if caption_column else CAPTION_COLUMNS
    captions = [name for name in wanted if name in names]
    if not captions:
        raise DataError(
            f"{path} has no column called {' or '.join(wanted)}: it has {', '.join(names)}. Name the one with captions "
            'with --caption-column, or give --caption-column "" for none.'
        )
    return images[0], captions[:1]


def _holds_images(kind: Any, pyarrow: Any) -> bool:
    types = pyarrow.types
    if types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _sample(row: str, image: Any, text: Any) -> PackedSample | Unusable:
    content, name = image, row
    if isinstance(image, dict):
        content = image.get("bytes")
        own_name = PurePosixPath(str(image.get("path") or "").replace("\\", "/")).stem
        name = f"{row}-{own_name}" if own_name else row
    if not content:
        return Unusable(name, "the file holds no bytes of the image, only its name")
    if len(content) > LARGEST_BYTES:
        return Unusable(name, f"the image has {len(content) / MIB:.0f} MiB")
    return PackedSample(name, content, (caption_of({"text": text}) or "").strip() or None)
