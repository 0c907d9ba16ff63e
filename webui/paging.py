"""A stretch of a long list, so that a page never shows, or loads, hundreds of pictures at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Page(Generic[Item]):
    """The items of one page. `number` counts from 1, `num_pages` is at least 1."""

    items: tuple[Item, ...]
    number: int
    num_pages: int
    num_items: int


def page_of(items: Sequence[Item], number: float | None, size: int, at: int | None = None) -> Page[Item]:
    """One page of the items, by its number or by where an item is; numbers beyond the ends give the first or last."""
    num_pages = max(1, -(-len(items) // size))
    number = int(number or 1) if at is None else at // size + 1
    number = min(max(1, number), num_pages)
    return Page(tuple(items[(number - 1) * size : number * size]), number, num_pages, len(items))
