"""What compares images: one protocol, the models behind it, and their answers kept by image.

Other packages add one through the entry point group `sdlora.features`: the name is what `features` is set to, and the
entry point names a function that takes the settings (`EvaluateConfig`) and gives the scorer.

Legend: N images, T texts, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from sdlora.config.evaluate import EvaluateConfig
from sdlora.data.cache import Cache

ENTRY_POINTS = "sdlora.features"
LATENTS, AUTO = "latents", "auto"
AUTO_MODEL = "openai/clip-vit-large-patch14"
"""Taken for a base model that is no toy; what CLIP-I and CLIP-T of papers are most often measured with."""


class Scorer(Protocol):
    """A model that turns images, and if it can texts, into vectors whose cosine says how alike two are."""

    @property
    def name(self) -> str:
        """How it is called in reports."""

    @property
    def identity(self) -> str:
        """A hash of all that its answers hang on: its weights and how images are prepared."""

    @property
    def is_centred(self) -> bool:
        """Whether features must be standardised over the images at hand before they are compared."""

    def image_features(self, images: Sequence[Image.Image], /) -> Tensor:
        """features_ND of upright RGB images of any size, float32 on the CPU."""

    def text_features(self, texts: Sequence[str], /) -> Tensor | None:
        """features_TD in the same space; None from a model that knows no texts."""


def load_scorer(config: EvaluateConfig, base_model: str) -> Scorer | None:
    """The scorer that `config.features` names, its weights loaded; None for `latents`, which is of the base model.

    base_model: its name. Raises ModelError when there is no scorer of that name, or none of a kind that is known.
    """
    name = wanted_features(config, base_model)
    if name == LATENTS:
        return None
    plugins = metadata.entry_points(group=ENTRY_POINTS)
    # Before folders and the hub: whoever installs a plug-in means its name.
    if name in plugins.names:
        scorer: Scorer = plugins[name].load()(config)
        return scorer
    from sdlora.evaluation.features.transformers_model import TransformersScorer

    return TransformersScorer(name, config.features_revision, config.compute.device)


def wanted_features(config: EvaluateConfig, base_model: str) -> str:
    """What compares images, `auto` settled."""
    if config.features != AUTO:
        return config.features
    return LATENTS if base_model.startswith("builtin:") else AUTO_MODEL


class KeptFeatures:
    """A scorer whose answers are kept on the disk by what an image holds, and asked for in batches."""

    def __init__(self, scorer: Scorer, cache: Cache, batch_size: int) -> None:
        self.scorer = scorer
        self._cache = cache
        self._batch_size = batch_size

    def of_images(
        self,
        hashes: Sequence[str],
        load: Callable[[int], Image.Image],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """features_ND. hashes: of the images' contents. load: gives the image at a place, called for new ones only."""
        keys = [self._cache.key({"kind": "features", "image": one, "by": self.scorer.identity}) for one in hashes]
        found: dict[str, Tensor] = {}
        for key in dict.fromkeys(keys):
            if (kept := self._cache.get(key)) is not None:
                found[key] = kept["features"]
        missing = [place for key, place in {key: place for place, key in enumerate(keys)}.items() if key not in found]
        for start in range(0, len(missing), self._batch_size):
            places = missing[start : start + self._batch_size]
            features_ND = self.scorer.image_features([load(place) for place in places]).float().cpu()
            for place, features_D in zip(places, features_ND, strict=True):
                found[keys[place]] = self._cache.put(keys[place], {"features": features_D})["features"]
            on_progress(len(found), len(set(keys)))
        return torch.stack([found[key] for key in keys])

    def of_texts(self, texts: Sequence[str]) -> Tensor | None:
        """features_TD; None where the scorer knows no texts."""
        return self.scorer.text_features(texts)
