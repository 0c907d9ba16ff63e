"""WD14-style taggers: an ONNX model with one probability a tag, and the list of tags beside it.

Layout as SmilingWolf publishes it: model.onnx takes BGR pixels from 0 to 255 as float32, padded to a square on white;
selected_tags.csv has the columns tag_id, name, category, count, its rows in the order of the outputs.

Array legend: B batch, H height, W width, C channel (blue, green, red), T tag.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from sdlora.config.captioning import CaptioningConfig
from sdlora.errors import MissingPackageError, ModelError

_GENERAL, _CHARACTER, _RATING = 0, 4, 9
_KAOMOJI = frozenset({
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^", "o_o",
    "u_u", "x_x", "|_|", "||_||",
})  # fmt: skip
"""Faces among the tags, whose underscore is a mouth."""


@dataclass(frozen=True)
class Tag:
    """One output of the model. category: 0 general, 4 character, 9 rating; others are left out."""

    name: str
    category: int


class Tagger:
    """Captions of tags: characters first, then general tags, then ratings if asked for, the likeliest first."""

    kind = "tagger"

    def __init__(self, model_file: Path, tags_file: Path, config: CaptioningConfig) -> None:
        """Load both files. Raises MissingPackageError without onnxruntime, ModelError for files of another layout."""
        self.config = config
        self.tags = read_tags(tags_file)
        self._session = _open_session(model_file, config.device)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int):
            raise ModelError(f"{model_file} takes {shape}; WD14-style taggers take one batch of [B, 448, 448, 3].")
        self._input, self.edge_px = inputs[0].name, shape[1]
        self._batch_size = shape[0] if isinstance(shape[0], int) else None
        outputs = self._session.get_outputs()[0].shape[-1]
        if isinstance(outputs, int) and outputs != len(self.tags):
            raise ModelError(f"{model_file} gives {outputs} values, but {tags_file.name} lists {len(self.tags)} tags.")

    def __call__(self, images: Sequence[Image.Image], /) -> list[str]:
        """The tags of each image, with commas between."""
        pixels_BHWC = numpy.stack([square_pixels(image, self.edge_px) for image in images])
        at_once = self._batch_size or len(images)
        parts = [pixels_BHWC[start : start + at_once] for start in range(0, len(images), at_once)]
        probabilities_BT = numpy.concatenate([self._run(part, at_once) for part in parts])
        return [", ".join(self._chosen(probabilities_T)) for probabilities_T in probabilities_BT]

    def _run(self, pixels_BHWC: numpy.ndarray, at_once: int) -> numpy.ndarray:
        # Some models were exported for a fixed number of images, and take no fewer.
        missing = at_once - len(pixels_BHWC)
        padded = numpy.pad(pixels_BHWC, ((0, missing), (0, 0), (0, 0), (0, 0)))
        return numpy.asarray(self._session.run(None, {self._input: padded})[0])[: len(pixels_BHWC)]

    def _chosen(self, probabilities_T: numpy.ndarray) -> list[str]:
        config = self.config
        chosen = []
        thresholds = (
            (_CHARACTER, config.character_threshold),
            (_GENERAL, config.threshold),
            (_RATING, config.rating_threshold),
        )
        for category, threshold in thresholds:
            if threshold is None:
                continue
            likely = [
                (float(probability), tag.name)
                for tag, probability in zip(self.tags, probabilities_T, strict=True)
                if tag.category == category and probability >= threshold
            ]
            chosen += [name for _, name in sorted(likely, key=lambda pair: -pair[0])]
        words = [spelled(name) for name in chosen]
        # Tags such as "fox (animal)": in prompts and captions with weights a plain bracket would be a weight.
        return [re.sub(r"([\\()\[\]])", r"\\\1", word) for word in words] if config.escape_brackets else words


def read_tags(path: Path) -> list[Tag]:
    """The tags of a selected_tags.csv, in the model's order. Raises ModelError for another kind of file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ModelError(
            f"{path} is not a list of tags with the columns tag_id, name, category, count: {error}"
        ) from None


def spelled(name: str) -> str:
    """The tag with spaces for underscores; faces such as ^_^ stay."""
    return name if name in _KAOMOJI else name.replace("_", " ")


def square_pixels(image: Image.Image, edge_px: int) -> numpy.ndarray:
    """pixels_HWC in BGR as float32, 0 to 255: the image in the middle of a white square, scaled to `edge_px`."""
    edge = max(image.size)
    canvas = Image.new("RGB", (edge, edge), "white")
    canvas.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    if edge != edge_px:
        canvas = canvas.resize((edge_px, edge_px), Image.Resampling.BICUBIC)
    return numpy.ascontiguousarray(numpy.asarray(canvas, dtype=numpy.float32)[:, :, ::-1])


def _open_session(model_file: Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError("Captioning with a tagger", "onnxruntime", "caption") from error

    kind, _, number = device.partition(":")
    cards = {"cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}
    there = onnxruntime.get_available_providers()
    if kind in cards and cards[kind] not in there:
        raise ModelError(
            f"device={device}: this onnxruntime has no {cards[kind]} (only {', '.join(there)}). Use device=cpu, or "
            "install onnxruntime-gpu in its place."
        )
    wanted = [cards[kind]] if kind in cards else [name for name in cards.values() if kind == "auto" and name in there]
    options = [{"device_id": number} if number else {} for _ in wanted]
    try:
        return onnxruntime.InferenceSession(
            str(model_file),
            providers=[*wanted, "CPUExecutionProvider"],
            provider_options=[*options, {}],
        )
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise ModelError(f"{model_file} can't be loaded by onnxruntime: {' '.join(str(error).split())}") from error
