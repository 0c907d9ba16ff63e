"""What a file holds (size, alpha, hash), remembered so that an unchanged file is decoded and hashed once."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from sdlora.data.decoding import is_animated, open_image, oriented_size
from sdlora.file_memory import FileMemory

# Goes up when more is found out of a file, so that all are looked at again.
_FORMAT = 3


@dataclass(frozen=True)
class ImageFacts:
    """Facts about one readable image file; width and height are those after EXIF orientation."""

    width_px: int
    height_px: int
    has_alpha: bool
    content_hash: str
    """SHA-256 of the file's bytes, in hex."""
    is_animated: bool = False
    is_invisible: bool = False
    """Whether every pixel is wholly transparent."""


def inspect_image(path: Path, max_megapixels: float) -> ImageFacts:
    """Decode and hash one image file. Raises decoding.UnreadableImageError with the reason."""
    with open_image(path, max_megapixels) as image:
        width_px, height_px = oriented_size(image)
        has_alpha = image.has_transparency_data
        image.draft("RGB", (64, 64))  # lets JPEG decode at an eighth: enough to find truncation, several times faster
        image.load()
        is_invisible = has_alpha and _alpha(image).getextrema() == (0, 0)
        animated = is_animated(image)
    return ImageFacts(width_px, height_px, has_alpha, hash_file(path), animated, is_invisible)


def _alpha(image: Image.Image) -> Image.Image:
    """The alpha channel of an image with transparency; a copy in RGBA is made only of one that has none to itself."""
    return (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_memory(image_folder: Path, cache_folder: Path | None) -> FileMemory:
    """What earlier scans of an image folder found out; cache_folder None remembers nothing."""
    name = hashlib.sha256(str(image_folder.resolve()).encode("utf-8", "surrogatepass")).hexdigest()
    return FileMemory(cache_folder / "scans" / f"{name}.json" if cache_folder else None, _FORMAT)


def recall(memory: FileMemory, path: Path, max_megapixels: float) -> ImageFacts:
    """The file's facts, from memory if it has not changed. Raises decoding.UnreadableImageError and OSError."""
    facts = ImageFacts(**memory.get(path, lambda: asdict(inspect_image(path, max_megapixels))))
    if facts.width_px * facts.height_px > max_megapixels * 1e6:
        inspect_image(path, max_megapixels)  # remembered under another limit: raises
    return facts
