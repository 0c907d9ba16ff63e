"""Samples of a parquet file as Hugging Face `datasets` writes them: an image column and a text column.

An image is a struct {bytes, path} or plain bytes. The file is read a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sdlora.constants import MIB
from sdlora.data.metadata_files import CAPTION_COLUMNS, caption_of, has_several, open_parquet
from sdlora.data.packed.samples import LARGEST_BYTES, PackedSample, Unusable
from sdlora.errors import DataError

PARQUET_SUFFIX = ".parquet"
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes")
"""Where images are looked for, the first one winning; then in the first column that holds any."""
_LAST = len(IMAGE_COLUMNS)
# A row holds a whole image, so eight of them may be some hundred megabytes.
_ROWS_AT_ONCE = 8


def read_parquet(
    path: Path, caption_column: str | None, on_share: Callable[[float], None] = lambda share: None
) -> Iterator[PackedSample | Unusable]:
    """The samples of a parquet file, in its order, called by their row and by their image's own name.

    on_share: called with how much of the file is read, 0 to 1. Raises what `check_columns` does.
    """
    file, image_column, captions, _ = _open(path, caption_column)
    row = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[image_column, *captions]):
        for values in batch.to_pylist():
            yield _sample(f"{row:08d}", values[image_column], [values[name] for name in captions])
            row += 1
        on_share(row / file.metadata.num_rows)


def check_columns(path: Path, caption_column: str | None) -> list[str]:
    """A sentence where one of several columns is taken, naming the others, for images and for captions.

    caption_column: by default the first of text, caption, prompt that says something; "" takes no captions. Raises
    DataError when a parquet file has no image column or no such caption column, or can't be read, MissingPackageError
    without pyarrow.
    """
    return _open(path, caption_column)[3]


def _open(path: Path, caption_column: str | None) -> tuple[Any, str, Sequence[str], list[str]]:
    try:
        file = open_parquet(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    return file, *_columns(path, file.schema_arrow, caption_column)


def _columns(path: Path, schema: Any, caption_column: str | None) -> tuple[str, Sequence[str], list[str]]:
    """The image column, the caption columns, and what is to be said of others."""
    import pyarrow

    names = list(schema.names)
    images = [field.name for field in schema if _holds_images(field.type, pyarrow)]
    if not images:
        raise DataError(f"{path} has no column of images (bytes, or a struct with bytes): it has {', '.join(names)}.")
    # By its name before its place: beside the images may stand what they are controlled by, or their masks.
    image = min(images, key=lambda name: IMAGE_COLUMNS.index(name.lower()) if name.lower() in IMAGE_COLUMNS else _LAST)
    notes = []
    if others := [name for name in images if name != image]:
        notes.append(f"images are taken from the column {image}, not from {', '.join(others)}")
    if caption_column == "":
        return image, [], notes
    wanted = (caption_column,) if caption_column else CAPTION_COLUMNS
    captions = [name for name in wanted if name in names]
    if not captions:
        raise DataError(
            f"{path} has no column called {' or '.join(wanted)}: it has {', '.join(names)}. Name the one with captions "
            'with --caption-column, or give --caption-column "" for none.'
        )
    if no_text := [f"{name} ({schema.field(name).type})" for name in captions if _is_no_text(schema.field(name).type)]:
        notes.append(f"captions are text, which the column {', '.join(no_text)} has not: it is not used")
    if len(captions) > 1:
        notes.append(
            f"captions are taken from the column {captions[0]}; where it is empty, from {', '.join(captions[1:])}"
        )
    return image, captions, notes


def _is_no_text(kind: Any) -> bool:
    """Whether nothing in a column of this type can be a caption: numbers, dates, true and false."""
    import pyarrow

    types = pyarrow.types
    return bool(types.is_primitive(kind) or types.is_boolean(kind))


def _holds_images(kind: Any, pyarrow: Any) -> bool:
    types = pyarrow.types
    if types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _sample(row: str, image: Any, texts: Sequence[Any]) -> PackedSample | Unusable:
    content, name = image, row
    if isinstance(image, dict):
        content = image.get("bytes")
        own_name = PurePosixPath(str(image.get("path") or "").replace("\\", "/")).stem
        name = f"{row}-{own_name}" if own_name else row
    if not content:
        return Unusable(name, "the file holds no bytes of the image, only its name")
    if len(content) > LARGEST_BYTES:
        return Unusable(name, f"the image has {len(content) / MIB:.0f} MiB")
    named = dict(zip(CAPTION_COLUMNS, texts, strict=False))  # one that was asked for stands at the first's place
    return PackedSample(name, content, (caption_of(named) or "").strip() or None, has_several(named))
