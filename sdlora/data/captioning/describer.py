"""Sentences from BLIP, BLIP-2, GIT and Florence-2 through transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import psutil
from PIL import Image

from sdlora.config.captioning import CaptioningConfig
from sdlora.constants import GIB
from sdlora.data.captioning.model import CaptioningModel
from sdlora.errors import ModelError
from sdlora.models.headers import read_header
from sdlora.models.hub import explained
from sdlora.models.progress_bars import no_progress_bars

if TYPE_CHECKING:
    import torch

SENTENCE_MODELS = ("blip", "blip-2", "git", "florence2")
"""Model types, as config.json names them; Florence-2 is asked for one of three lengths, the others for nothing."""
_FLORENCE_TASKS = {"short": "<CAPTION>", "detailed": "<DETAILED_CAPTION>", "paragraph": "<MORE_DETAILED_CAPTION>"}
_SPARE = 1.15
"""Memory needed over that of the weights alone."""


class VisionCaptioner:
    """Captions of one sentence each, found by beam search: the same images give the same sentences."""

    def __init__(self, place: CaptioningModel, config: CaptioningConfig) -> None:
        """Load model and processor; half precision on a card. Raises ModelError, also when it can't fit the memory."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.config = config
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        self.device = torch.device(device)
        self._dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        _refuse_too_large(place, self.device)
        quiet = nullcontext() if place.folder is None else no_progress_bars()  # a download shows its own
        with quiet, explained(place.name, place.revision):
            try:
                self._processor = AutoProcessor.from_pretrained(place.location, revision=place.revision)
                model = AutoModelForImageTextToText.from_pretrained(
                    place.location, revision=place.revision, dtype=self._dtype
                )
            except (OSError, ValueError, KeyError) as error:
                # The hub's errors are put into words by `explained` around this.
                if type(error).__module__.startswith("huggingface_hub"):
                    raise
                raise ModelError(f"{place.name} can't be loaded: {' '.join(str(error).split())}") from error
        self._model = model.to(self.device).eval()
        self.kind: str = model.config.model_type
        self._is_asked = self.kind == "florence2"

    def __call__(self, images: Sequence[Image.Image], /) -> list[str]:
        """One sentence for each image."""
        import torch

        asked = {"text": [_FLORENCE_TASKS[self.config.detail]] * len(images)} if self._is_asked else {}
        inputs = self._processor(images=list(images), **asked, return_tensors="pt").to(self.device, self._dtype)
        with torch.inference_mode():
            tokens_BT = self._model.generate(
                **inputs, max_new_tokens=self.config.max_tokens, num_beams=self.config.beams, do_sample=False
            )
        return [text.strip() for text in self._processor.batch_decode(tokens_BT, skip_special_tokens=True)]


def _refuse_too_large(place: CaptioningModel, device: torch.device) -> None:
    """Raise ModelError when the weights alone take more than the free memory."""
    needed = _count_parameters(place) * (2 if device.type == "cuda" else 4) * _SPARE
    if device.type == "cuda":
        import torch

        free = float(torch.cuda.mem_get_info(device)[0])
    else:
        free = float(psutil.virtual_memory().available)
    if needed > free:
        raise ModelError(
            f"{place.name} needs about {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free on {device}: take a "
            "smaller model, such as Salesforce/blip-image-captioning-base (1 GiB), or free memory."
        )


def _count_parameters(place: CaptioningModel) -> int:
    """Values in the weights; 0 where that can't be told before they are loaded."""
    if place.folder is None:
        return _count_on_hub(place)
    files = list(place.folder.glob("*.safetensors"))
    if files:
        return sum(math.prod(shape) for file in files for shape in read_header(file).shapes.values())
    return sum(path.stat().st_size for path in place.folder.glob("*.bin")) // 4


def _count_on_hub(place: CaptioningModel) -> int:
    from huggingface_hub import HfApi

    if place.hub is None or place.hub.cached_only:
        return 0
    with explained(place.name, place.revision):
        found = HfApi().model_info(place.name, revision=place.revision, files_metadata=True)
    if found.safetensors is not None:
        return found.safetensors.total
    return sum(file.size or 0 for file in found.siblings or [] if file.rfilename.endswith(".bin")) // 4
