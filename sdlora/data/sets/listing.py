"""The images of a dataset with their captions: listed, searched, counted by tag."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Literal, get_args

from sdlora import atomic
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.images import CaptionsConfig
from sdlora.data.caption_files import CaptionFolders
from sdlora.data.captions import render
from sdlora.data.folder_listing import list_folder, settled_stamp
from sdlora.data.lint.tags import tags_of
from sdlora.errors import DataError
from sdlora.models.prompts import CHUNK_TOKENS, count_tokens
from sdlora.models.tokenizer import light_tokenizer
from sdlora.text_files import encoded_like, read_file

TOKEN_LIMIT = CHUNK_TOKENS
CAPTIONS = CaptionsConfig()
Kind = Literal["all", "no caption", "too long", "with mask"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Item:
    """One image file of a dataset, unopened."""

    path: Path
    name: str
    """Path below the dataset, with slashes."""
    caption: str
    """Its own, as training reads it; empty when there is none."""
    mask: Path | None = None
    folder_name: str = ""
    """Where there is none, the name of its `10_name` folder, which training reads instead; else empty."""

    @property
    def trained(self) -> str:
        """The text that training begins with, whoever wrote it."""
        return self.caption or self.folder_name

    @property
    def tokens(self) -> int:
        """Tokens that the caption takes up in the model."""
        return count(self.caption)

    @property
    def is_too_long(self) -> bool:
        """Whether the model doesn't see all of the caption."""
        # A token is at least one byte: most captions of a large dataset needn't be counted.
        return len(self.caption.encode()) > TOKEN_LIMIT and self.tokens > TOKEN_LIMIT

    @property
    def tags(self) -> list[str]:
        """What stands between the caption's commas."""
        return tags_of(self.caption, CAPTIONS)


@dataclass(frozen=True)
class Filter:
    """Which images are wanted; all conditions must hold."""

    text: str = ""
    """Words that the caption or the file's name has."""
    kind: Kind = "all"
    tags: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether every image passes, as nothing is asked for."""
        return not self.text.strip() and self.kind == "all" and not self.tags

    def passes(self, item: Item) -> bool:
        """Whether an image has every word in caption or name, is of the kind and has all tags; case doesn't matter."""
        words = f"{item.caption} {item.name}".casefold()
        if not all(word in words for word in self.text.casefold().split()):
            return False
        if self.kind != "all" and not _is(item, self.kind):
            return False
        return not self.tags or {tag.casefold() for tag in self.tags} <= {tag.casefold() for tag in item.tags}


class Items(tuple[Item, ...]):
    """All images of a dataset, in the order of their names."""

    @cached_property
    def tag_counts(self) -> list[tuple[str, int]]:
        """As the function of that name gives them."""
        return _counted(self)


def read(folder: Path) -> Items:
    """All images of a dataset, none of an empty one."""
    # Asked for at every press on the page: of thousands of images only their files' times are looked at then. Who asks
    # while another reads waits for its answer.
    with _reading(folder):
        return _read(folder, settled_stamp(folder))


@lru_cache(maxsize=64)
def _reading(_folder: Path) -> threading.Lock:
    return threading.Lock()


@lru_cache(maxsize=16)
def _read(folder: Path, _stamp: int) -> Items:
    try:
        listing = list_folder(folder)
    except DataError:
        return Items()
    sources, above = CaptionFolders(folder), len(str(folder / "x")) - 1

    def item(path: Path) -> Item:
        text, source = sources.found(path)
        caption, folder_name = ("", text) if source == "folder" else (text, "")
        # By letters: of thousands of images `relative_to` takes as long as all else that is done here with paths.
        name = str(path)[above:].replace(os.sep, "/")
        return Item(path, name, caption or "", listing.mask_of(path), folder_name or "")

    return Items(item(path) for path in listing.pictures)


def position(items: Sequence[Item], name: str | None) -> int | None:
    """Where an image is in the list."""
    return next((index for index, item in enumerate(items) if item.name == name), None)


def neighbour(items: Sequence[Item], name: str, step: int) -> int:
    """Where the image before (-1) or after (1) another one is, at the ends that itself.

    For one that has left the list (a filter no longer lets it pass) its place by name counts.
    """
    at = position(items, name)
    if at is None:
        # It would stand between two: the one after it has this index, the one before has one less.
        at = sum(item.name < name for item in items) - (step > 0)
    return min(max(0, at + step), len(items) - 1)


def tag_counts(items: Sequence[Item]) -> list[tuple[str, int]]:
    """Every tag and the number of captions that have it, most frequent first; case is that of the first one met."""
    return items.tag_counts if isinstance(items, Items) else _counted(items)


def _counted(items: Sequence[Item]) -> list[tuple[str, int]]:
    spelled: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for item in items:
        for tag in item.tags:
            spelled.setdefault(tag.casefold(), tag)
        counts.update({tag.casefold() for tag in item.tags})
    return [(spelled[tag], number) for tag, number in sorted(counts.items(), key=lambda each: (-each[1], each[0]))]


@lru_cache(maxsize=50_000)
def count(caption: str) -> int:
    """CLIP tokens of a caption as it is trained; all Stable Diffusion families share the vocabulary."""
    return count_tokens(_tokenizer(), render(caption, CAPTIONS, random.Random(0))) if caption else 0


def write_caption(image: Path, text: str) -> None:
    """Write an image's caption beside it in one go; a file that is there keeps its encoding.

    No file is made for a caption that was never there.
    """
    path = image.with_suffix(".txt")
    if not text and not path.exists():
        return
    atomic.write_bytes(path, encoded_like(text, read_file(path) if path.exists() else b""))


def caption_of(image: Path, folder: Path) -> str:
    """An image's own caption as training reads it, empty for none. folder: the dataset."""
    return CaptionFolders(folder).own_caption(image) or ""


def captioned(image: Path, folder: Path, caption: str) -> Item:
    """An image with a caption that was just written. folder: the dataset."""
    name = image.relative_to(folder).as_posix()
    return Item(image, name, caption.strip(), folder_name=CaptionFolders(folder).folder_name(image) or "")


def save_caption(image: Path, folder: Path, text: str, known: Collection[str]) -> str | None:
    """Write a caption, unless somebody else has changed it: then their text, and nothing is written.

    known: what whoever writes has seen or written there.
    """
    on_disk = caption_of(image, folder)
    if on_disk.strip() == text.strip():
        return None
    if on_disk.strip() not in {each.strip() for each in known}:
        return on_disk
    write_caption(image, text)
    return None


@cache
def _tokenizer() -> object:
    return light_tokenizer(BaseModelConfig(model="builtin:emoji"))


def _is(item: Item, kind: Kind) -> bool:
    if kind == "no caption":
        return not item.caption
    if kind == "too long":
        return item.is_too_long
    return item.mask is not None
