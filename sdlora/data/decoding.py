"""Any image file as upright 8-bit sRGB pixels, with its alpha channel and size."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

_PLUGINS = {
    ".heic": ("pillow_heif", "pillow-heif"),
    ".heif": ("pillow_heif", "pillow-heif"),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}
"""Kinds that Pillow reads with a plugin: module and package."""
_READY = tuple(suffix for suffix, (module, _) in _PLUGINS.items() if find_spec(module))
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", *_READY)
UNREAD_SUFFIXES = (*(suffix for suffix in _PLUGINS if suffix not in _READY), ".psd", ".svg", ".tif", ".tiff")
_SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "AVIF": ".avif", "BMP": ".bmp", "GIF": ".gif"}
# Only these: of Pillow's other plugins some start programs (EPS), and none is for what a dataset holds.
_FORMATS = (*_SUFFIX_OF, *{"JXL" if suffix == ".jxl" else "HEIF" for suffix in _READY})

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_size_limit = threading.Lock()


def why_unread(suffix: str) -> str:
    """Why files with one of UNREAD_SUFFIXES are not read, and what to do."""
    if suffix in _PLUGINS:
        return f"{suffix} files need the package {_PLUGINS[suffix][1]} (pip install it), or save it as PNG or JPEG"
    return f"{suffix} files are not read: save it as PNG or JPEG"


class UnreadableImageError(Exception):
    """A file that can't be used as an image; the message is the reason, without the file's name."""


@contextmanager
def open_image(path: Path, max_megapixels: float | None = None) -> Iterator[Image.Image]:
    """The opened image, pixels not yet decoded. Raises UnreadableImageError, also for errors inside the block.

    max_megapixels replaces Pillow's own guard against decompression bombs; None trusts the file.
    """
    try:
        with _open_without_size_limit(path) as image:
            megapixels = image.width * image.height / 1e6
            if max_megapixels is not None and megapixels > max_megapixels:
                raise UnreadableImageError(
                    f"{megapixels:.3g} megapixels, more than images.max_megapixels={max_megapixels:g}"
                )
            yield image
    # Too little memory is no fault of the file.
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins let broken files raise almost anything
        raise UnreadableImageError(_reason(path, error)) from error


def suffix_of(content: bytes) -> str:
    """The file ending for an image's bytes, told from their first ones. Raises UnreadableImageError."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return _SUFFIX_OF[str(image.format)]
    except Exception as error:  # Pillow's plugins let broken files raise almost anything
        raise UnreadableImageError("not a JPEG, PNG, WebP, AVIF, BMP or GIF image") from error


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels as the image is shown, that is after its EXIF orientation."""
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def is_animated(image: Image.Image) -> bool:
    """Whether the opened file has more than one frame."""
    # An MPO is what many phones write: a JPEG with a second picture for depth or brightness behind it.
    return image.format != "MPO" and int(getattr(image, "n_frames", 1)) > 1


def load_rgb(path: Path, background: str) -> Image.Image:
    """The image upright, in 8-bit sRGB, transparent pixels on `background` (#rrggbb). Raises UnreadableImageError."""
    with open_image(path) as image:
        return to_rgb(image, background)


def to_rgb(image: Image.Image, background: str) -> Image.Image:
    """An opened image upright, in 8-bit sRGB, transparent pixels on `background`; its size may have been drafted."""
    image.load()
    return _upright(image, _flatten(image, background))


def load_alpha(path: Path) -> Image.Image | None:
    """The upright alpha channel in mode L, or None for an image without one. Raises UnreadableImageError."""
    with open_image(path) as image:
        image.load()
        if not image.has_transparency_data:
            return None
        return _upright(image, image.convert("RGBA").getchannel("A"))


def load_grey(path: Path) -> Image.Image:
    """The upright image in mode L, transparent pixels black. Raises UnreadableImageError."""
    return load_rgb(path, "#000000").convert("L")


def _open_without_size_limit(path: Path) -> Image.Image:
    _load_plugin(path.suffix.lower())
    # The limit is a global of Pillow's: one thread at a time may lift it.
    with _size_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


@lru_cache
def _load_plugin(suffix: str) -> None:
    if suffix not in _READY:
        return
    module = import_module(_PLUGINS[suffix][0])
    if suffix != ".jxl":  # that one registers itself
        module.register_heif_opener()


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"can't be opened ({error.strerror})"
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, AVIF, BMP or GIF image"
    return f"damaged ({error})" if str(error) else f"damaged ({type(error).__name__})"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data doesn't make the pixels unreadable
        return 1


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """The pixels turned as the image's EXIF data say.

    Pillow writes the EXIF data anew when it turns a picture, which the data of odd cameras don't survive: so it is
    given the orientation alone.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = _orientation(image)
    pixels.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(pixels)


def _flatten(image: Image.Image, background: str) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return _to_srgb(to_eight_bits(image), profile)
    with_alpha = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(_to_srgb(with_alpha.convert("RGB"), profile), mask=with_alpha.getchannel("A"))
    return canvas


def to_eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image in mode L; any other as it is."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = numpy.asarray(image).astype(numpy.float64)
    # 65535 / 257 is 255.
    return Image.fromarray((values / 257).round().clip(0, 255).astype(numpy.uint8))


def _to_srgb(image: Image.Image, profile_bytes: bytes | None) -> Image.Image:
    """Mode RGB in sRGB; a missing, broken or unfitting colour profile leaves Pillow's plain conversion."""
    if image.mode not in ("RGB", "CMYK", "L", "LAB"):
        image = image.convert("RGB")
    if profile_bytes:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
            # Converting sRGB to itself would only round the pixels once more.
            if not ImageCms.getProfileDescription(profile).startswith("sRGB"):
                converted = ImageCms.profileToProfile(image, profile, _SRGB, outputMode="RGB")
                return converted if converted is not None else image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")
