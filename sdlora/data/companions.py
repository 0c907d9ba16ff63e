"""The caption and mask files that go with an image, and stay where another image of its name does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sdlora.config.images import CaptionsConfig
from sdlora.data.decoding import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from sdlora.data.folder_listing import MASK_ENDING


def companions(image: Path, leaving: Collection[Path], captions: CaptionsConfig) -> Sequence[Path]:
    """The files that no image uses any more once those `leaving` are gone, `image` among them: its captions and mask.

    cat.png and cat.jpg share cat.txt and cat-masklabel.png: both stay as long as one of the two does.
    """
    if any(path not in leaving for path in images_of_that_name(image)):
        return []
    texts = [image.with_suffix(ending) for ending in (captions.extension, *captions.alternatives)]
    masks = images_of_that_name(image.with_stem(image.stem + MASK_ENDING), itself=True)
    return [path for path in (*texts, *masks) if path.is_file()]


def images_of_that_name(image: Path, *, itself: bool = False) -> Sequence[Path]:
    """Images beside this one whose names differ from its in the ending alone, by name; with `itself` it counts, too."""
    beside = (path for path in image.parent.iterdir() if path.suffix.lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES))
    return sorted(path for path in beside if path.stem == image.stem and (itself or path != image))
