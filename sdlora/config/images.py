"""Training images and captions: where they lie and how they become batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from sdlora.config.section import Section
from sdlora.config.shipped import resolve_folder
from sdlora.constants import LARGEST_EDGE_PX, LATENT_FACTOR

MaskSource = Literal["none", "alpha", "file"]
CropFocus = Literal["centre", "face", "mask"]


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
    """Pick one of several caption lines, and of {red|green} one, each time; {3::red|green} and {2$$red|green|blue} mean
    the same as in prompts."""

    weights: bool = False
    """Honour (word:1.2) and [word] weights in captions; off reads brackets as text, as in the tag `saber (fate)`."""

    keep_separator: str | None = None
    """Text that parts a caption's fixed tags from the rest, such as `|||`: what stands before it (and after a second
    one) is never shuffled or dropped. The separator itself is not trained; captions without it follow keep_tags."""

    group_separator: str | None = None
    """Text that ties tags together, such as `;;;`: shuffle and dropout treat a group as one tag, then the text becomes
    the separator."""

    protected_tags: tuple[str, ...] | Path = ()
    """Tags that tag_dropout never leaves out: a list, or a text file with one a line."""

    extension: str = Field(default=".txt", pattern=r"^\.[\w.-]+$")
    """Ending of the caption files beside the images, with its dot."""

    alternatives: dict[str, float] = Field(default_factory=dict)
    """Further caption files beside the images, by ending, each with its chance to be used instead of the main one:
    {.short.txt: 0.3} trains `cat.short.txt` three times in ten. Images that lack one use the main caption."""

    max_tokens: Literal[75, 150, 225] = 75
    """Longest caption in tokens; beyond 75 it is encoded in chunks of 75."""

    @model_validator(mode="after")
    def _check(self) -> CaptionsConfig:
        problems = []
        for ending, chance in self.alternatives.items():
            if not re.fullmatch(r"\.[\w.-]+", ending) or ending == self.extension:
                problems.append(f"alternatives: '{ending}' is no ending of further caption files, such as .short.txt")
            if not 0 < chance <= 1:
                problems.append(f"alternatives.{ending}: the chance must lie between 0 and 1; got {chance:g}")
        if sum(self.alternatives.values()) > 1:
            problems.append(f"alternatives: the chances add up to {sum(self.alternatives.values()):g}, more than 1")
        for name, text in (("keep_separator", self.keep_separator), ("group_separator", self.group_separator)):
            if text is not None and (not text.strip() or text.strip() == self.separator.strip()):
                problems.append(f"{name}: must be text other than the separator '{self.separator}'; got '{text}'")
        if self.keep_separator and self.group_separator and self.keep_separator.strip() in self.group_separator:
            # Captions are parted by the first before the second is looked for.
            problems.append(f"group_separator: holds keep_separator '{self.keep_separator}', so it would tie nothing")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ImageFolder(Section):
    """One folder with settings of its own; what is left out is taken from `images` and `captions`."""

    folder: Path
    """The folder; subfolders are read."""

    repeats: int | None = Field(default=None, ge=1, le=100_000)
    """How often each image is seen in an epoch; without it the folder's name (`10_name`) or images.repeats says."""

    is_class: bool = False
    """Class images for prior preservation: trained without trigger, prefix and suffix."""

    loss_weight: float = Field(default=1.0, gt=0.0, le=100.0)
    """Factor on the loss of these images."""

    resolution: int | tuple[int, ...] | None = None
    """As images.resolution."""

    horizontal_flip: bool | None = None
    """As images.horizontal_flip."""

    mask: MaskSource | None = None
    """As images.mask."""

    trigger: str | None = None
    """As captions.trigger; empty for none."""

    prefix: str | None = None
    """As captions.prefix."""

    suffix: str | None = None
    """As captions.suffix."""

    default: str | None = None
    """As captions.default."""

    shuffle_tags: bool | None = None
    """As captions.shuffle_tags."""

    keep_tags: int | None = Field(default=None, ge=0)
    """As captions.keep_tags."""

    tag_dropout: float | None = Field(default=None, ge=0.0, le=1.0)
    """As captions.tag_dropout."""

    dropout: float | None = Field(default=None, ge=0.0, le=1.0)
    """As captions.dropout."""

    def captions(self, shared: CaptionsConfig) -> CaptionsConfig:
        """The caption settings that hold in this folder."""
        own = {name: value for name in _OWN_CAPTIONS if (value := getattr(self, name)) is not None}
        if self.is_class:
            own |= {"trigger": None, "prefix": "", "suffix": ""}
        return shared.model_copy(update=own)

    def images(self, shared: ImagesConfig) -> ImagesConfig:
        """The image settings that hold in this folder."""
        own = {name: value for name in _OWN_IMAGES if (value := getattr(self, name)) is not None}
        return shared.model_copy(update=own)


_OWN_CAPTIONS = ("trigger", "prefix", "suffix", "default", "shuffle_tags", "keep_tags", "tag_dropout", "dropout")
_OWN_IMAGES = ("resolution", "horizontal_flip", "mask")


class ImagesConfig(Section):
    folder: Path | tuple[Path, ...] | None = None
    """Folder (or list of folders) with training images; subfolders are read, `10_name` means 10 repeats.
    `builtin:blueprint` and `builtin:mascot` are sample sets that come with the package."""

    folders: tuple[ImageFolder, ...] = ()
    """Instead of `folder`: a list of folders with settings of their own, such as
    [{folder: cats, repeats: 3, trigger: ohwx cat}, {folder: scenes, loss_weight: 0.5}]."""

    class_folder: Path | None = None
    """Folder with class images for prior preservation; `sdlora dataset class-images` generates them. Their captions
    stay without trigger, prefix and suffix."""

    repeats: int = Field(default=1, ge=1, le=100_000)
    """How often each image is seen in an epoch; a `10_name` folder overrules it."""

    resolution: int | tuple[int, ...] = 512
    """Target edge in pixels (area = edge squared); a list trains every image at several resolutions."""

    buckets: bool = True
    """Group images by aspect ratio; off crops every image to a square."""

    bucket_step: int = Field(default=64, ge=LATENT_FACTOR, multiple_of=LATENT_FACTOR)
    """Bucket edges are multiples of this."""

    bucket_min: int | None = Field(default=None, ge=32, le=LARGEST_EDGE_PX)
    """Shortest bucket edge in pixels; by default half the resolution."""

    bucket_max: int | None = Field(default=None, ge=32, le=LARGEST_EDGE_PX)
    """Longest bucket edge in pixels; by default twice the resolution."""

    upscale: bool = True
    """Enlarge images that are smaller than their bucket; off gives them a smaller bucket."""

    horizontal_flip: bool = False
    """Mirror each image half of the time; not for text, asymmetric faces or signs."""

    random_crop: bool = False
    """Cut the bucket's window at a random place, not the centre."""

    crop_focus: CropFocus = "centre"
    """What the window is centred on and a random crop keeps whole where it fits: the image's centre, the face whose
    place the file's name tells as sd-scripts writes it (`cat_512_300_200_220`: centre and size in pixels), or what the
    mask shows."""

    crop_jitter: float = Field(default=0.0, ge=0.0, le=1.0)
    """Enlarge each image by up to this share before its window is cut, at a random place; 0.1 is usual."""

    rotation: float = Field(default=0.0, ge=0.0, le=45.0)
    """Turn each image by up to this many degrees to either side, enlarged until its corners are filled."""

    colour_jitter: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Change brightness, contrast and saturation by up to this share each time an image is seen; 0.1 is usual."""

    hue_jitter: float = Field(default=0.0, ge=0.0, le=180.0)
    """Shift the hue by up to this many degrees each time an image is seen."""

    background: str = Field(default="#ffffff", pattern=r"^#[0-9a-fA-F]{6}$")
    """Colour behind transparent pixels, as #rrggbb."""

    mask: MaskSource = "none"
    """Weight the loss by a mask: the image's alpha channel, or `name-masklabel.png` beside it."""

    unmasked_weight: float = Field(default=0.0, ge=0.0, le=1.0)
    """Loss weight outside the mask."""

    inpaint_mask: Literal["strokes", "mask"] = "strokes"
    """What an inpainting base model paints anew: random strokes and boxes, a quarter of the time everything, or what
    images.mask covers (file or alpha)."""

    max_unreadable: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of files that may be unreadable before the run is refused; each is listed either way."""

    max_megapixels: float = Field(default=200.0, gt=0)
    """Larger images are skipped and listed (guards against decompression bombs)."""

    cache: bool = True
    """Keep encoded images and captions on disk, shared by all runs."""

    cache_folder: Path | None = None
    """Where they are kept; by default the user's cache folder (or $SDLORA_CACHE)."""

    @property
    def varies(self) -> bool:
        """Whether an image's pixels differ by more than a mirroring and a crop each time it is seen."""
        return any((self.crop_jitter, self.rotation, self.colour_jitter, self.hue_jitter))

    @property
    def is_live(self) -> bool:
        """Whether images must be encoded each time they are seen, as no two times are alike."""
        return self.random_crop or self.varies

    @property
    def sources(self) -> tuple[ImageFolder, ...]:
        """`folder` and `folders` in one form, empty when neither is set; `builtin:NAME` is a shipped sample set."""
        plain = self.folder if isinstance(self.folder, tuple) else () if self.folder is None else (self.folder,)
        sources = (*(ImageFolder(folder=folder) for folder in plain), *self.folders)
        return tuple(source.model_copy(update={"folder": resolve_folder(source.folder)}) for source in sources)

    @property
    def all_folders(self) -> tuple[Path, ...]:
        """The paths of all image folders."""
        return tuple(source.folder for source in self.sources)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The target resolutions as a tuple."""
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution,)

    @model_validator(mode="after")
    def _check(self) -> ImagesConfig:
        if self.folder is not None and self.folders:
            raise ValueError(
                "folders: images.folder is set too; put all into images.folders, or set images.folder=null"
            )
        if self.crop_focus == "mask" and self.mask == "none" and all(each.mask is None for each in self.folders):
            raise ValueError("crop_focus=mask needs images.mask, alpha or file")
        if self.inpaint_mask == "mask" and self.mask == "none" and all(each.mask is None for each in self.folders):
            raise ValueError("inpaint_mask=mask needs images.mask, alpha or file")
        _check_resolutions(self)
        for source in self.folders:
            try:
                _check_resolutions(source.images(self))
            except ValueError as error:
                raise ValueError(f"folders: {source.folder}: {error}") from None
        return self


def _check_resolutions(images: ImagesConfig) -> None:
    edges = images.resolutions
    if not edges or any(not 64 <= edge <= LARGEST_EDGE_PX or edge % LATENT_FACTOR for edge in edges):
        wanted = f"every value must be a multiple of 8 from 64 to {LARGEST_EDGE_PX}"
        raise ValueError(f"resolution: {wanted}; got {images.resolution}")
    if len(set(images.resolutions)) < len(images.resolutions):
        raise ValueError(f"resolution: an edge is named twice; got {list(images.resolutions)}")
    if not images.buckets:
        return
    smallest, largest = min(images.resolutions), max(images.resolutions)
    if images.bucket_min and images.bucket_max and images.bucket_min > images.bucket_max:
        raise ValueError(f"bucket_min ({images.bucket_min}) is larger than bucket_max ({images.bucket_max})")
    if images.bucket_min and images.bucket_min > smallest:
        raise ValueError(f"bucket_min ({images.bucket_min}) is larger than the resolution ({smallest})")
    if images.bucket_max and images.bucket_max < largest:
        raise ValueError(f"bucket_max ({images.bucket_max}) is smaller than the resolution ({largest})")
    if images.bucket_step > smallest:
        raise ValueError(f"bucket_step ({images.bucket_step}) is larger than the resolution ({smallest})")
