"""Masks made for a dataset: `NAME-masklabel.png` beside each image, white where it is trained.

From the alpha channel, or from a network that cuts subjects out of their background, in ONNX as rembg keeps them:
u2net, silueta, isnet, BiRefNet, RMBG. These take one image of a fixed size, normalised, and give one map.

Array legend: H height, W width, C channel.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy
from PIL import Image

from sdlora import disk
from sdlora.data.decoding import UnreadableImageError, load_alpha, load_rgb
from sdlora.data.fix.changes import Change, ChangeSet
from sdlora.data.folder_listing import MASK_ENDING, list_folder
from sdlora.data.scan_problems import changeable
from sdlora.errors import DataError, MissingPackageError, ModelError
from sdlora.models.hub import reach
from sdlora.models.source import is_hub_name
from sdlora.words import count

ALPHA = "alpha"
_HUB_FILES = ("onnx/model.onnx", "model.onnx")
# Means and deviations that the networks were trained with: most on ImageNet's, isnet and RMBG on plain halves.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CENTRED = ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
_CENTRED_KINDS = ("isnet", "rmbg")
_USUAL_EDGE_PX = 1024
_LEAST_SPREAD = 0.1
_BACKGROUND = "#ffffff"
_PAINTED_ALPHA = 8
"""Least opacity of a stroke that counts, of 255: brushes have soft edges."""


class MaskMaker(Protocol):
    """Gives an image's mask in mode L at the image's size, or None where it finds no subject."""

    def __call__(self, path: Path, /) -> Image.Image | None:
        """The mask of an image file. Raises UnreadableImageError."""


@dataclass
class Masked:
    """What making masks came to."""

    made: int = 0
    there: int = 0
    """Images that had a mask already."""
    without: list[Path] = field(default_factory=list)
    """Images of which none could be made: no transparent part, no subject."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    originals: Path | None = None
    """Folder that `undo` works from; None when nothing was changed."""

    @property
    def words(self) -> str:
        """How many there are of each kind."""
        counts = (
            (self.made, f"{count(self.made, 'mask')} made"),
            (self.there, f"{self.there} with one before, left alone"),
            (len(self.without), f"{len(self.without)} without a subject"),
            (len(self.unreadable), f"{len(self.unreadable)} left out, since they can't be read"),
        )
        return ", ".join(words for number, words in counts if number) or "no images"

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "words": self.words,
            "made": self.made,
            "there": self.there,
            "without": [str(path) for path in self.without],
            "unreadable": {str(path): reason for path, reason in self.unreadable.items()},
            "originals": None if self.originals is None else str(self.originals),
        }


def load_mask_maker(model: str) -> MaskMaker:
    """The maker that a name stands for: `alpha`, an .onnx file, a name of rembg's (u2net), or a hub name (owner/name).

    Raises ModelError when there is none of that name, MissingPackageError without onnxruntime.
    """
    if model == ALPHA:
        return mask_from_alpha
    return SubjectFinder(_locate(model))


def make_masks(
    folder: Path,
    maker: MaskMaker,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Masked:
    """Write masks beside a folder's images and those below it; `fix.changes.undo` takes them back.

    Interrupted, the next call goes on with what has none. Raises DataError without images, or where none can be
    written.
    """
    folder = changeable(folder)
    listing, result = list_folder(folder), Masked()
    changes: ChangeSet | None = None
    done: set[Path] = set()
    for number, picture in enumerate(listing.pictures):
        target = picture.with_name(f"{picture.stem}{MASK_ENDING}.png")
        old = listing.mask_of(picture)
        if target in done or (old is not None and not overwrite):
            result.there += 1
        elif (mask := _made(picture, maker, result)) is not None:
            changes = changes or ChangeSet.begin(folder)
            what = f"{100 * numpy.asarray(mask).mean() / 255:.0f} % of {picture.name} is trained"
            _apply(changes, Change(("mask",), target, partial(as_png, mask), what))
            # A mask of another file type would still be found, and could be the one that counts.
            if old is not None and old != target:
                _apply(changes, Change(("mask",), old, None, "the mask before"))
            done.add(target)
        on_progress(number + 1, len(listing.pictures))
    result.made = len(done)
    result.originals = None if changes is None else changes.path
    return result


def _made(picture: Path, maker: MaskMaker, result: Masked) -> Image.Image | None:
    try:
        mask = maker(picture)
    except UnreadableImageError as error:
        result.unreadable[picture] = str(error)
        return None
    if mask is None:
        result.without.append(picture)
    return mask


def _apply(changes: ChangeSet, change: Change) -> None:
    try:
        changes.make(change)
    except OSError as error:
        raise DataError(disk.explain(error, change.path)) from error


def mask_from_alpha(path: Path, /) -> Image.Image | None:
    """The alpha channel; None where nothing is transparent."""
    alpha = load_alpha(path)
    return None if alpha is None or alpha.getextrema() == (255, 255) else alpha


class SubjectFinder:
    """Masks of an ONNX network that separates a subject from its background."""

    def __init__(self, file: Path) -> None:
        """Load the network. Raises MissingPackageError without onnxruntime, ModelError for one of another layout."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackageError("making masks with a model", "onnxruntime", "caption") from error
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(file), providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ModelError(f"{file} can't be loaded by onnxruntime: {' '.join(str(error).split())}") from error
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            raise ModelError(f"{file} takes {shape}; models that make masks take one image as [1, 3, height, width]")
        self._input = inputs[0].name
        height, width = (edge if isinstance(edge, int) else _USUAL_EDGE_PX for edge in shape[2:])
        self._size = (width, height)
        is_centred = any(kind in f"{file.parent.name}/{file.name}".lower() for kind in _CENTRED_KINDS)
        self._mean_C, self._std_C = numpy.asarray(_CENTRED if is_centred else _IMAGENET, numpy.float32)

    def __call__(self, path: Path, /) -> Image.Image | None:
        """The mask; None for a picture in which nothing stands out."""
        image = load_rgb(path, _BACKGROUND)
        # Squeezed to the network's shape, as rembg does, and the map is stretched back below.
        pixels_HWC = numpy.asarray(image.resize(self._size, Image.Resampling.LANCZOS), numpy.float32) / 255
        normal_HWC = (pixels_HWC - self._mean_C) / self._std_C
        found = numpy.asarray(self._session.run(None, {self._input: normal_HWC.transpose(2, 0, 1)[None]})[0])
        map_HW = found.reshape(found.shape[-2:]).astype(numpy.float64)
        if map_HW.min() < 0 or map_HW.max() > 1:  # logits
            map_HW = 1 / (1 + numpy.exp(-map_HW))
        spread = map_HW.max() - map_HW.min()
        # What follows gives any map full contrast: of one that tells nothing it would make a mask of noise.
        if spread < _LEAST_SPREAD:
            return None
        mask = Image.fromarray(((map_HW - map_HW.min()) / spread * 255).round().astype(numpy.uint8))
        return mask.resize(image.size, Image.Resampling.LANCZOS)


def _locate(model: str) -> Path:
    for file in (Path(model).expanduser(), _rembg_folder() / f"{Path(model).stem}.onnx"):
        if file.is_file():
            return file
    if is_hub_name(model) and not model.endswith(".onnx"):
        hub = reach(model, None)
        for name in _HUB_FILES:
            if (found := hub.file(name)) is not None:
                return found
        raise ModelError(f"{model} on the hub has no {' or '.join(_HUB_FILES)}")
    raise ModelError(
        f"mask model '{model}' was not found: it is no .onnx file, no hub name (owner/name), and rembg keeps none of "
        f"that name in {_rembg_folder()}. `pip install rembg[cpu,cli]` and `rembg d u2net` put one there; "
        f"--model {ALPHA} takes the images' own transparency"
    )


def _rembg_folder() -> Path:
    return Path(os.environ.get("U2NET_HOME") or Path.home() / ".u2net").expanduser()


def mask_of_paint(layers: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """A mask (mode L) of this size, white where a layer has paint. layers: transparent elsewhere, of any size."""
    mask = Image.new("L", size)
    for layer in layers:
        painted = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha >= _PAINTED_ALPHA else 0)
        if painted.size != size:
            painted = painted.resize(size, Image.Resampling.NEAREST)
        mask.paste(255, mask=painted)
    return mask


def as_png(mask: Image.Image) -> bytes:
    """A mask as the bytes of its file."""
    content = io.BytesIO()
    mask.save(content, "PNG")
    return content.getvalue()
