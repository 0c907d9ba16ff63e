"""CLIP, SigLIP and DINOv2 through transformers, from the hub or a folder.

Legend: N images, T texts, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdlora.errors import ConfigError, ModelError
from sdlora.generation.request.compute import choose_device
from sdlora.models.hub import explained, reach
from sdlora.models.identity import weights_identity
from sdlora.models.progress_bars import no_progress_bars
from sdlora.models.source import is_hub_name

WITH_TEXT = ("clip", "siglip", "siglip2")
IMAGES_ONLY = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""Model types, as config.json names them."""


class TransformersScorer:
    """A model's image features and, if it has a text encoder, text features, of unit length."""

    is_centred = False

    def __init__(self, name: str, revision: str | None, device: str) -> None:
        """Load it. Raises ModelError when it isn't there or of no known kind, ConfigError for a device that isn't."""
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

        self.name = name
        location, revision, is_local = _locate(name, revision)
        try:
            self._device = choose_device(device)
        except ValueError as error:
            raise ConfigError("the evaluation", [str(error)]) from None
        quiet = no_progress_bars() if is_local else nullcontext()
        with quiet, explained(name, revision):
            try:
                kind = AutoConfig.from_pretrained(location, revision=revision).model_type
                if kind not in (*WITH_TEXT, *IMAGES_ONLY):
                    raise ModelError(
                        f"{name} can't compare images: it is a model of type '{kind}', known are "
                        f"{', '.join((*WITH_TEXT, *IMAGES_ONLY))}"
                    )
                self._processor = AutoImageProcessor.from_pretrained(location, revision=revision, use_fast=False)
                self._tokenizer = (
                    AutoTokenizer.from_pretrained(location, revision=revision) if kind in WITH_TEXT else None
                )
                model = AutoModel.from_pretrained(location, revision=revision, dtype=torch.float32)
            except (OSError, ValueError, KeyError, ImportError) as error:
                # The hub's errors are put into words by `explained` around this.
                if type(error).__module__.startswith("huggingface_hub"):
                    raise
                raise ModelError(f"{name} can't be loaded: {' '.join(str(error).split())}") from error
        self._kind = kind
        self._model: Any = model.to(self._device).eval()
        prepared = repr(self._processor.to_dict())
        self.identity = weights_identity([self._model], kind, prepared)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image], /) -> Tensor:
        """features_ND of unit length."""
        inputs = self._processor(images=list(images), return_tensors="pt").to(self._device)
        has_text = self._kind in WITH_TEXT
        features = self._model.get_image_features(**inputs) if has_text else self._model(**inputs)
        return _unit(_pooled(features))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str], /) -> Tensor | None:
        """features_TD of unit length, texts cut to what the model takes; None of a model without a text encoder."""
        if self._tokenizer is None:
            return None
        # SigLIP was trained with all texts filled up to its longest; CLIP masks what is filled up.
        padding = "max_length" if self._kind.startswith("siglip") else True
        limit = self._model.config.text_config.max_position_embeddings
        inputs = self._tokenizer(
            list(texts), padding=padding, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self._device)
        return _unit(_pooled(self._model.get_text_features(**inputs)))


def _pooled(output: Any) -> Tensor:
    """One vector for each image or text: some versions of transformers wrap it."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _unit(features_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features_ND.float(), dim=-1).cpu()


def _locate(name: str, revision: str | None) -> tuple[str, str | None, bool]:
    """What from_pretrained takes, the commit, and whether it lies here. Raises ModelError when nothing is there."""
    path = Path(name).expanduser()
    if path.is_file():  # a weight file: its folder has what else is needed
        path = path.parent
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"features: {path} holds no config.json of a CLIP, SigLIP or DINOv2 model")
        return str(path), None, True
    if not is_hub_name(name):
        raise ModelError(
            f"features: '{name}' was not found: it is no folder here and not a hub name (owner/name), such as "
            "openai/clip-vit-large-patch14; `latents` needs no model"
        )
    found = reach(name, revision)
    if found.file("config.json") is None:
        raise ModelError(
            f"hub model '{name}' has no config.json: it is no CLIP, SigLIP or DINOv2 model of transformers"
        )
    return name, found.revision, False
