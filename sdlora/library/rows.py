"""The adapters in use as rows: what can be done to them, as settings of a request, and as `<lora:...>` text.

Rows are values: every operation gives new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sdlora.adapters.algebra.blocks import NAMED_WEIGHTS, read_blocks, spell_blocks
from sdlora.config.base_model import FamilyName
from sdlora.config.generate import UsedAdapter
from sdlora.config.mix import MixedAdapter
from sdlora.errors import AdapterError, ConfigError
from sdlora.library.prompt_tags import UNTAGGABLE, can_be_tagged, split_prompt, write_tag
from sdlora.library.scan import LibraryEntry, Scan

BLOCK_PRESETS = NAMED_WEIGHTS
"""Names that block weights may be given by."""


@dataclass(frozen=True)
class Row:
    """One adapter in use, as the page's rows show it; `id` names it wherever it is moved to."""

    id: int
    file: str
    enabled: bool = True
    weight: float = 1.0
    """Of the UNet's layers, and of all where `text_encoder` is None."""
    text_encoder: float | None = None
    """Of the text encoders' layers; None is linked to `weight`."""
    blocks: str = "ALL"
    """A preset's name, numbers between commas, or MID=0.5,OUT03=0."""
    start: float = 0.0
    end: float = 1.0
    """Share of the sampling steps after which it sets in and is left out."""

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return Path(self.file).stem

    def used(self) -> UsedAdapter:
        """The row as a setting. Raises ConfigError naming the adapter where its blocks or steps make no sense."""
        if self.start >= self.end:
            raise ConfigError(f"adapter {self.name}", [f"start {self.start:g} must come before end {self.end:g}"])
        return UsedAdapter(
            file=self.file,
            weight=self.weight,
            text_encoder=self.text_encoder,
            blocks=read_blocks(self.blocks, self.name),
            start=self.start,
            end=self.end,
        )


Rows = tuple[Row, ...]


# ---- operations: rows in, rows out


def add(rows: Rows, entry: LibraryEntry) -> Rows:
    """With a row for the adapter at its preferred weight.

    Raises AdapterError when it is there already, or has a name that the text has no place for.
    """
    if any(Path(row.file) == entry.path for row in rows):
        raise AdapterError(f"{entry.name} is in the list already; change its weight there")
    if not can_be_tagged(entry.tag):
        raise AdapterError(f"{entry.tag}: {UNTAGGABLE}")
    weight = entry.about.preferred_weight
    return (*rows, Row(_next_id(rows), str(entry.path), weight=1.0 if weight is None else weight))


def use(rows: Rows, entry: LibraryEntry, *, alone: bool) -> Rows:
    """With the adapter in use and switched on. alone: the others switched off."""
    if not any(Path(row.file) == entry.path for row in rows):
        rows = add(rows, entry)
    this = {row.id for row in rows if Path(row.file) == entry.path}
    return tuple(replace(row, enabled=row.id in this or (row.enabled and not alone)) for row in rows)


def remove(rows: Rows, row_id: int) -> Rows:
    """The rows without the one of this id."""
    return tuple(row for row in rows if row.id != row_id)


def move(rows: Rows, row_id: int, by: int) -> Rows:
    """With the row moved up (-1) or down (+1), as far as there is room."""
    index = next((index for index, row in enumerate(rows) if row.id == row_id), None)
    if index is None or not 0 <= index + by < len(rows):
        return rows
    moved = list(rows)
    moved.insert(index + by, moved.pop(index))
    return tuple(moved)


def update(rows: Rows, row_id: int, **values: Any) -> Rows:
    """With some values of a row changed; a row that is gone (removed in another window) changes nothing."""
    return tuple(replace(row, **values) if row.id == row_id else row for row in rows)


def set_blocks(rows: Rows, row_id: int, blocks: str, family: FamilyName | None) -> Rows:
    """With a row's block weights changed. Raises ConfigError naming the adapter where they make no sense for it."""
    name = next((row.name for row in rows if row.id == row_id), "")
    read_blocks(blocks, name, family)
    return update(rows, row_id, blocks=blocks)


def from_used(adapters: Sequence[MixedAdapter], before: Rows = ()) -> Rows:
    """Rows for adapters of a request or a mix."""
    rows: Rows = ()
    for adapter in adapters:
        row = Row(
            id=_next_id((*before, *rows)),
            file=adapter.file,
            weight=adapter.weight if adapter.unet is None else adapter.unet,
            text_encoder=adapter.text_encoder if adapter.unet is None else _text_encoder(adapter),
            blocks=spell_blocks(adapter.blocks),
            start=getattr(adapter, "start", 0.0),
            end=getattr(adapter, "end", 1.0),
        )
        rows = (*rows, row)
    return rows


def only_taggable(rows: Rows, library: Scan) -> tuple[Rows, list[str]]:
    """The rows that the text has a place for, and sentences on the others."""
    others = [row for row in rows if not has_tag(row, library)]
    return tuple(row for row in rows if row not in others), [f"{row.name}: {UNTAGGABLE}" for row in others]


def used(rows: Rows) -> tuple[UsedAdapter, ...]:
    """The enabled rows as settings. Raises ConfigError listing everything that is wrong with them."""
    found, problems = [], []
    for row in rows:
        if row.enabled:
            try:
                found.append(row.used())
            except ConfigError as error:
                problems += [f"{row.name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError("the adapters", problems)
    return tuple(found)


def check_family(rows: Rows, library: Scan, base: tuple[str, FamilyName] | None = None) -> FamilyName | None:
    """The family that all enabled adapters (and the base model, given with its name) share, None if none tells.

    Raises AdapterError naming one of each family where they differ, or naming files that are gone.
    """
    told: dict[FamilyName, str] = {} if base is None else {base[1]: f"the base model {base[0]} is {base[1]}"}
    missing = []
    for row in rows:
        if not row.enabled:
            continue
        entry = library.by_path(row.file)
        if entry is None and not row.file.startswith("hf://") and not Path(row.file).is_file():
            missing.append(row.file)
        if entry is not None and entry.about.family is not None:
            told.setdefault(entry.about.family, f"{entry.name} is for {entry.about.family}")
    if missing:
        raise AdapterError(f"these files are gone: {', '.join(missing)}. Remove their rows or put the files back.")
    if len(told) > 1:
        raise AdapterError(f"different families can't be put together: {', '.join(told.values())}")
    return next(iter(told), None)


# ---- the text


def to_tags(rows: Rows, library: Scan) -> str:
    """The enabled rows as `<lora:name:te:unet>` tags; blocks, start and end have no place in them.

    Rows without a place in the text (see `has_tag`) are left out.
    """
    tags = []
    for row in rows:
        if row.enabled and has_tag(row, library):
            text_encoder = row.weight if row.text_encoder is None else row.text_encoder
            tags.append(write_tag(_tag_name(row, library), text_encoder, row.weight))
    return " ".join(tags)


def has_tag(row: Row, library: Scan) -> bool:
    """Whether the text has a place for a row: not where its file was given such a name since, or an older version
    took it."""
    return can_be_tagged(_tag_name(row, library))


def apply_tags(rows: Rows, text: str, library: Scan) -> Rows:
    """The rows as the tags want them: weights and order set, new adapters added, those without a tag switched off.

    Rows that can't have a tag stay as they are. Raises ConfigError listing what can't be read, isn't in the library, or
    stands there twice.
    """
    rest, tags = split_prompt(text)
    problems = [f"'{rest}' is no <lora:name:weight>"] if rest.strip(" ,") else []
    wanted: dict[int, Row] = {}
    after = list(rows)
    for tag in tags:
        try:
            row = _meant(tag.name, after, library)
        except ConfigError as error:
            problems += [f"{tag.text}: {problem}" for problem in error.problems]
            continue
        if row not in after:
            after.append(row)
        if row.id in wanted:
            problems.append(f"{tag.text}: {row.name} has a tag already")
        linked = None if tag.text_encoder == tag.unet else tag.text_encoder
        blocks = row.blocks if tag.blocks == "ALL" else spell_blocks(tag.blocks)
        wanted[row.id] = replace(row, enabled=True, weight=tag.unet, text_encoder=linked, blocks=blocks)
    if problems:
        raise ConfigError("the tags", problems)
    in_order = iter(wanted.values())
    # Rows with a tag come in the tags' order, in the places that such rows had; the others keep theirs.
    return tuple(
        next(in_order) if row.id in wanted else replace(row, enabled=row.enabled and not has_tag(row, library))
        for row in after
    )


def _meant(name: str, rows: Sequence[Row], library: Scan) -> Row:
    """The row that a tag means, a new one if its adapter is not in use. Raises ConfigError as `Scan.find` does."""
    elsewhere = (row for row in rows if row.name == name and library.by_path(row.file) is None)
    if (outside := next(elsewhere, None)) is not None:  # a file that the library doesn't list has its name alone
        return outside
    entry = library.find(name)
    in_use = (row for row in rows if Path(row.file) == entry.path)
    return next(in_use, None) or Row(_next_id(rows), str(entry.path))


def _tag_name(row: Row, library: Scan) -> str:
    entry = library.by_path(row.file)
    return entry.tag if entry is not None else row.name


def _next_id(rows: Sequence[Row]) -> int:
    return max((row.id for row in rows), default=0) + 1


def _text_encoder(adapter: MixedAdapter) -> float | None:
    text_encoder = adapter.weight if adapter.text_encoder is None else adapter.text_encoder
    return None if text_encoder == adapter.unet else text_encoder


def rows_from_plain(values: Any) -> Rows:
    """Rows as JSON keeps them (`dataclasses.asdict`); what doesn't fit (an older version's) is left out."""
    names = {field.name for field in fields(Row)}
    rows = []
    for value in values if isinstance(values, list) else []:
        if isinstance(value, dict) and set(value) <= names and {"id", "file"} <= set(value):
            row = Row(**value)
            if _fits(row):
                rows.append(row)
    return tuple(rows)


def _fits(row: Row) -> bool:
    numbers = [row.weight, row.start, row.end, *([] if row.text_encoder is None else [row.text_encoder])]
    return (
        isinstance(row.id, int)
        and isinstance(row.file, str)
        and isinstance(row.blocks, str)
        and all(isinstance(number, int | float) for number in numbers)
    )
