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
    pictures = [path for path in image.parent.iterdir() if path.suffix.lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)]
    stem = image.with_suffix("")
    if any(path.with_suffix("") == stem and path not in leaving for path in pictures):
        return []
    texts = [image.with_suffix(ending) for ending in (captions.extension, *captions.alternatives)]
    masks = [path for path in pictures if path.with_suffix("") == stem.with_name(stem.name + MASK_ENDING)]
    return [path for path in (*texts, *sorted(masks)) if path.is_file()]
