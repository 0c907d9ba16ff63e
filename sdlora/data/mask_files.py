"""Mask files looked at before training: whether they can be read, fit their image, and leave anything to train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sdlora.config.images import ImagesConfig
from sdlora.data.decoding import UnreadableImageError, open_image, oriented_size, to_rgb
from sdlora.data.inspection import ImageFacts
from sdlora.words import count


@dataclass
class Masks:
    """The masks of a folder's images, with what is odd about them."""

    stretched: dict[Path, str] = field(default_factory=dict)
    """Masks of another shape than their image, with both sizes in words."""
    empty: list[Path] = field(default_factory=list)
    """Masks, or wholly transparent images, that leave nothing to train."""

    def problem(self, path: Path, facts: ImageFacts, mask_path: Path | None, images: ImagesConfig) -> str | None:
        """Why an image's mask can't be used, if so; what is odd about one that can is kept."""
        if images.mask == "alpha" and facts.is_invisible:
            self.empty.append(path)
        if mask_path is None:
            return None
        try:
            with open_image(mask_path, images.max_megapixels) as image:
                width, height = oriented_size(image)
                grey = to_rgb(image, "#000000").convert("L")
        except UnreadableImageError as error:
            return f"its mask {mask_path.name} can't be read: {error}"
        if not _is_scaled((width, height), (facts.width_px, facts.height_px)):
            self.stretched[mask_path] = f"{width}x{height} px for {facts.width_px}x{facts.height_px}"
        if grey.getextrema() == (0, 0):
            self.empty.append(mask_path)
        return None

    def add(self, other: Masks) -> None:
        """Take over what was found of another folder's masks."""
        self.stretched |= other.stretched
        self.empty += other.empty

    def oddities(self) -> Iterator[tuple[str, str, tuple[Path, ...]]]:
        """What is odd, each as the check's rule, a sentence without full stop, and the files."""
        if self.stretched:
            masks = (
                f"{count(len(self.stretched), 'mask')} of another shape than the image, over which each is stretched"
            )
            yield "mask-shape", f"{masks} ({next(iter(self.stretched.values()))})", tuple(self.stretched)
        if self.empty:
            masks = (
                f"{count(len(self.empty), 'mask')} all black or wholly transparent, so nothing of the image is trained"
            )
            yield "mask-empty", masks, tuple(self.empty)


def _is_scaled(size: tuple[int, int], original: tuple[int, int]) -> bool:
    """Whether one size is the other one scaled, give or take the rounding to whole pixels."""
    (width, height), (full_width, full_height) = size, original
    return abs(width - full_width * height / full_height) <= 1 or abs(height - full_height * width / full_width) <= 1
