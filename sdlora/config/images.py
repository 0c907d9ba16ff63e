"""Training images and captions: where they lie and how they become batches."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from sdlora.config.section import Section
from sdlora.config.shipped import resolve_folder
from sdlora.constants import LATENT_FACTOR

MaskSource = Literal["none", "alpha", "file"]


class CaptionsConfig(Section):
    default: str | None = None
    """Caption for an image that has none; without it a missing caption is an error."""

    trigger: str | None = None
    """Word that calls the adapter up; put in front of every caption that lacks it, those of class images excepted."""

    prefix: str = ""
    """Text put in front of every caption."""

    suffix: str = ""
    """Text put behind every caption."""

    separator: str = ","
    """What parts a caption into tags."""

    shuffle_tags: bool = False
    """Shuffle the tags afresh each time an image is seen."""

    keep_tags: int = Field(default=0, ge=0)
    """Number of leading tags that shuffle and dropout leave alone (the trigger counts)."""

    tag_dropout: float = Field(default=0.0, ge=0.0, le=1.0)
    """Chance to leave out each tag."""

    dropout: float = Field(default=0.0, ge=0.0, le=1.0)
    """Chance to train an image with an empty caption."""

    wildcards: bool = False
    """Pick one of several caption lines, and one of {red|green} alternatives, each time."""

    weights: bool = True
    """Honour (word:1.2) and [word] weights in captions; off reads brackets as text."""

    max_tokens: Literal[75, 150, 225] = 75
    """Longest caption in tokens; beyond 75 it is encoded in chunks of 75."""


class ImagesConfig(Section):
    folder: Path | tuple[Path, ...] | None = None
    """Folder (or list of folders) with training images; subfolders are read, `10_name` means 10 repeats.
    `builtin:blueprint` and `builtin:mascot` are sample sets that come with the package."""

    class_folder: Path | None = None
    """Folder with class images for prior preservation; `sdlora dataset class-images` generates them. Their
    captions stay without trigger, prefix and suffix."""

    repeats: int = Field(default=1, ge=1)
    """How often each image is seen in an epoch; a `10_name` folder overrules it."""

    resolution: int | tuple[int, ...] = 512
    """Target edge in pixels (area = edge squared); a list trains every image at several resolutions."""

    buckets: bool = True
    """Group images by aspect ratio; off crops every image to a square."""

    bucket_step: int = Field(default=64, ge=LATENT_FACTOR, multiple_of=LATENT_FACTOR)
    """Bucket edges are multiples of this."""

    bucket_min: int | None = Field(default=None, ge=32)
    """Shortest bucket edge in pixels; by default half the resolution."""

    bucket_max: int | None = Field(default=None, ge=32)
    """Longest bucket edge in pixels; by default twice the resolution."""

    upscale: bool = True
    """Enlarge images that are smaller than their bucket; off gives them a smaller bucket."""

    horizontal_flip: bool = False
    """Mirror each image half of the time; not for text, asymmetric faces or signs."""

    random_crop: bool = False
    """Cut the bucket's window at a random place, not the centre."""

    background: str = Field(default="#ffffff", pattern=r"^#[0-9a-fA-F]{6}$")
    """Colour behind transparent pixels, as #rrggbb."""

    mask: MaskSource = "none"
    """Weight the loss by a mask: the image's alpha channel, or `name-masklabel.png` beside it."""

    unmasked_weight: float = Field(default=0.0, ge=0.0, le=1.0)
    """Loss weight outside the mask."""

    max_unreadable: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of files that may be unreadable before the run is refused; each is listed either way."""

    max_megapixels: float = Field(default=200.0, gt=0)
    """Larger images are skipped and listed (guards against decompression bombs)."""

    cache: bool = True
    """Keep encoded images and captions on disk, shared by all runs."""

    cache_folder: Path | None = None
    """Where they are kept; by default the user's cache folder (or $SDLORA_CACHE)."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The image folders as a tuple, empty when none is set; `builtin:NAME` is a shipped sample set."""
        if self.folder is None:
            return ()
        folders = self.folder if isinstance(self.folder, tuple) else (self.folder,)
        return tuple(resolve_folder(folder) for folder in folders)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The target resolutions as a tuple."""
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution,)

    @model_validator(mode="after")
    def _check(self) -> ImagesConfig:
        if not self.resolutions or any(edge < 64 or edge % LATENT_FACTOR for edge in self.resolutions):
            raise ValueError(f"resolution: every value must be a multiple of 8, at least 64; got {self.resolution}")
        if self.buckets:
            self._check_buckets()
        return self

    def _check_buckets(self) -> None:
        smallest, largest = min(self.resolutions), max(self.resolutions)
        if self.bucket_min and self.bucket_max and self.bucket_min > self.bucket_max:
            raise ValueError(f"bucket_min ({self.bucket_min}) is larger than bucket_max ({self.bucket_max})")
        if self.bucket_min and self.bucket_min > smallest:
            raise ValueError(f"bucket_min ({self.bucket_min}) is larger than the resolution ({smallest})")
        if self.bucket_max and self.bucket_max < largest:
            raise ValueError(f"bucket_max ({self.bucket_max}) is smaller than the resolution ({largest})")
        if self.bucket_step > smallest:
            raise ValueError(f"bucket_step ({self.bucket_step}) is larger than the resolution ({smallest})")
