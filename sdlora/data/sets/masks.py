"""Loss masks, painted by hand or asked of a model: `name-masklabel.png` beside an image, white where it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image, ImageChops

from sdlora.data.companions import images_of_that_name
from sdlora.data.decoding import UnreadableImageError, open_image, oriented_size
from sdlora.data.fix.changes import Change, apply
from sdlora.data.folder_listing import MASK_ENDING
from sdlora.data.masking import ALPHA, as_png, mask_of_paint
from sdlora.data.sets.listing import Item
from sdlora.errors import DataError

Meaning = Literal["trained", "left out"]
"""What paint stands for."""

SUGGESTED = (ALPHA, "u2net", "isnet-general-use", "isnet-anime", "birefnet-general", "silueta")
"""Where masks of all pictures may come from: their own transparency, and rembg's models for all kinds of pictures."""


def save_painted(folder: Path, item: Item, layers: Sequence[Image.Image], meaning: Meaning) -> str:
    """Write what was painted over an image as its mask, in place of one it has, kept for Undo; returns a sentence.

    layers: transparent where nothing is painted, of any size. Raises DataError without paint, or for an image that
    can't be read.
    """
    try:
        with open_image(item.path) as image:
            size = oriented_size(image)
    except (OSError, UnreadableImageError) as error:
        raise DataError(f"{item.name} can't be read, so it gets no mask: {error}") from None
    mask = mask_of_paint(layers, size)
    if not mask.getbbox():
        raise DataError(f"Nothing is painted over {item.name}. Paint over what is to be {meaning}, then save.")
    if meaning == "left out":
        mask = ImageChops.invert(mask)
        if not mask.getbbox():
            raise DataError(f"All of {item.name} is painted over, which would leave nothing of it to train.")
    target = item.path.with_name(f"{item.path.stem}{MASK_ENDING}.png")
    share = sum(mask.histogram()[128:]) / (size[0] * size[1])
    changes = [Change(("mask",), target, partial(as_png, mask), f"{share:.0%} of {item.name} is trained")]
    # A mask of another file type would still be found, and could be the one that counts.
    if item.mask is not None and item.mask != target:
        changes.append(Change(("mask",), item.mask, None, "the mask before"))
    apply(folder, changes)
    return f"Saved: {share:.0%} of {item.name} is trained, once images.mask on Train is file.{_shared(item)}"


def remove_mask(folder: Path, item: Item) -> str:
    """Take an image's mask away, kept for Undo; returns a sentence. Raises DataError when there is none."""
    if item.mask is None:
        raise DataError(f"{item.name} has no mask file.")
    apply(folder, [Change(("mask",), item.mask, None, "the mask is removed")])
    return f"Removed: all of {item.name} is trained.{_shared(item)}"


def _shared(item: Item) -> str:
    """Of the images whose name differs in its ending alone, for which the same mask counts: a sentence, or nothing."""
    others = images_of_that_name(item.path)
    return f" The same goes for {', '.join(each.name for each in others)}: it shares the mask." if others else ""
