"""Generated and training images looked at once: features, layouts, tones, and how well each follows its prompt.

Legend: N images, M training images, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.data.cache import Cache
from sdlora.data.inspection import hash_file
from sdlora.evaluation import scores
from sdlora.evaluation.features.latents import EncodedImages, LatentScorer, LayoutScorer
from sdlora.evaluation.features.scorer import KeptFeatures, Scorer
from sdlora.evaluation.features.tones import ToneScorer
from sdlora.evaluation.images import PlannedImage
from sdlora.evaluation.losses import MeasuredImage, measure, prompt_gain, timesteps
from sdlora.evaluation.training_images import TrainingImages
from sdlora.generation.generate import Generator

Tell = Callable[[int, int], None]
_DRAWS, _RANGE = 2, (0.35, 0.65)
"""Timesteps at which a prompt's gain is measured: in the middle, where it is decided what is seen."""


@dataclass(frozen=True)
class LookedAt:
    """Everything that is compared of a list of images."""

    features_ND: Tensor
    layouts_ND: Tensor
    adherence_N: Tensor
    """How well each follows its prompt without the trigger; NaN where that is empty."""
    tones_N2: Tensor
    """Saturation and contrast."""


class Looking:
    """Looks at images with one scorer and the loaded base model; what it finds is kept by the images' contents."""

    def __init__(self, generator: Generator, scorer: Scorer | None, cache: Cache, batch_size: int, seed: int) -> None:
        """scorer: what gives features; None takes the base model's latents."""
        self._generator = generator
        self._encoded = EncodedImages(generator.bundle)
        scorer = scorer or LatentScorer(self._encoded)
        self._features = KeptFeatures(scorer, cache, batch_size)
        self._layouts = KeptFeatures(LayoutScorer(self._encoded), cache, batch_size)
        self._tones = KeptFeatures(ToneScorer(), cache, batch_size)
        self._cache = cache
        self._batch_size = batch_size
        self._seed = seed
        self.scorer_name = scorer.name
        self.is_centred = scorer.is_centred

    def at_generated(self, rows: Sequence[PlannedImage], tell: Tell) -> LookedAt:
        """What is compared of generated images, all of which must be there."""
        hashes = [hash_file(one.path) for one in rows]

        # Three looks at each image, told as one count.
        def told(look: int) -> Tell:
            return lambda done, total: tell(look * len(rows) + len(rows) - total + done, 3 * len(rows))

        features_ND = self._features.of_images(hashes, lambda place: rows[place].load(), told(0))
        layouts_ND = self._layouts.of_images(hashes, lambda place: rows[place].load(), told(1))
        tones_N2 = self._tones.of_images(hashes, lambda place: rows[place].load())
        bare = [one.prompt.bare for one in rows]
        texts_ND = self._features.of_texts(bare)
        # CLIP's own answer where there is one, else the base model's.
        adherence_N = (
            self._gains(rows, hashes, told(2)) if texts_ND is None else scores.adherence(features_ND, texts_ND)
        )
        is_empty_N = torch.tensor([not text.strip() for text in bare])
        return LookedAt(features_ND, layouts_ND, torch.where(is_empty_N, torch.nan, adherence_N), tones_N2)

    def features(
        self, groups: Sequence[Sequence[PlannedImage]], training_MD: Tensor, tell: Tell
    ) -> tuple[list[Tensor], Tensor]:
        """Each group's features, the first of which is the base model's, and the training images', to be compared."""
        rows = list({one.path: one for group in groups for one in group}.values())
        hashes = [hash_file(one.path) for one in rows]
        features_ND = self._features.of_images(hashes, lambda place: rows[place].load(), tell)
        places = {one.path: place for place, one in enumerate(rows)}
        found = [features_ND[[places[one.path] for one in group]] for group in groups]
        if not self.is_centred:
            return found, training_MD
        reference = torch.cat([training_MD, found[0]])
        return [scores.standardised(each, reference) for each in found], scores.standardised(training_MD, reference)

    def at_training(self, training: TrainingImages) -> LookedAt:
        """What is compared of the training images; they follow no prompt."""
        hashes, count = training.hashes, len(training.placed)
        return LookedAt(
            self._features.of_images(hashes, training.picture),
            self._layouts.of_images(hashes, training.picture),
            torch.full((count,), torch.nan),
            self._tones.of_images(hashes, training.picture),
        )

    def _gains(self, rows: Sequence[PlannedImage], hashes: Sequence[str], tell: Tell) -> Tensor:
        """gain_N: how much better the base model predicts each image with its bare prompt than with another one."""
        bundle = self._generator.bundle
        steps = timesteps(_DRAWS, len(bundle.schedule), _RANGE)
        about: dict[str, str | int] = {
            "kind": "prompt gain",
            "base": bundle.identity,
            "text": bundle.text_identity,
            "precision": str(bundle.dtype),
            "steps": ",".join(map(str, steps)),
            "seed": self._seed,
        }
        others = _other_prompts(rows)
        keys = [
            self._cache.key({**about, "image": image, "prompt": one.prompt.bare, "against": other})
            for one, other, image in zip(rows, others, hashes, strict=True)
        ]
        kept = {key: found["gain"] for key in dict.fromkeys(keys) if (found := self._cache.get(key)) is not None}
        missing = [place for place, key in enumerate(keys) if key not in kept and rows[place].prompt.bare.strip()]
        texts = list(dict.fromkeys(text for place in missing for text in (rows[place].prompt.bare, others[place])))
        empty, *states = self._generator.encode_texts((), ["", *texts], max_tokens=225, weights=True)
        by_text = dict(zip(texts, states, strict=True))
        with self._generator.adapted(()) as base:
            for start in range(0, len(missing), self._batch_size):
                places = missing[start : start + self._batch_size]
                pictures = [rows[place].load() for place in places]
                conditions = [base.family.full_size_conditions(*picture.size) for picture in pictures]
                latents = [self._encoded(picture) for picture in pictures]
                own = [by_text[rows[place].prompt.bare] for place in places]
                other = [by_text[others[place]] for place in places]
                measured = [
                    MeasuredImage(*one)
                    for states_of in (own, other)
                    for one in zip(latents, states_of, conditions, strict=True)
                ]
                losses_NK = measure(
                    base, measured, steps, seed=self._seed, empty=empty, batch_size=2 * self._batch_size
                )
                gains_N = prompt_gain(losses_NK[: len(places)], losses_NK[len(places) :])
                for place, gain in zip(places, gains_N, strict=True):
                    kept[keys[place]] = self._cache.put(keys[place], {"gain": gain})["gain"]
                tell(start + len(places), len(missing))
        return torch.stack([kept.get(key, torch.tensor(torch.nan)) for key in keys])


def _other_prompts(rows: Sequence[PlannedImage]) -> list[str]:
    """For each image the bare prompt of others that its own is held against, another for each seed; or none."""
    different = list(dict.fromkeys(one.prompt.bare for one in rows if one.prompt.bare.strip()))
    found = []
    for one in rows:
        others = [text for text in different if text != one.prompt.bare]
        start = different.index(one.prompt.bare) if one.prompt.bare in different else 0
        found.append(others[(start + one.seed) % len(others)] if others else "")
    return found
