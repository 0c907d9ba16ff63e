"""Images that were looked at, compared: each checkpoint's scores against the base model and the training images.

Legend: N images, M training images, P prompts, S seeds, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdlora.evaluation import scores
from sdlora.evaluation.images import PlannedImage
from sdlora.evaluation.looking import LookedAt
from sdlora.evaluation.report import Copy, Scores


class Comparing:
    """All images of an evaluation with what was seen of them."""

    def __init__(
        self,
        rows: Sequence[PlannedImage],
        looked: LookedAt,
        training: LookedAt,
        training_names: Sequence[str],
        num_seeds: int,
        *,
        is_centred: bool,
    ) -> None:
        """rows: each different image once, as `looked` has them. is_centred: standardise features before comparing."""
        self._rows = rows
        self._looked = looked
        self._training = training
        self._names = training_names
        self._num_seeds = num_seeds
        self._base = {(one.prompt.bare, one.seed): place for place, one in enumerate(rows) if one.checkpoint is None}
        base = list(self._base.values())
        self._features_ND, self._training_MD = looked.features_ND, training.features_ND
        if is_centred:
            # Over both populations: over one alone, what all of its images share would count as nothing.
            reference = torch.cat([self._training_MD, self._features_ND[base]])
            self._features_ND = scores.standardised(self._features_ND, reference)
            self._training_MD = scores.standardised(self._training_MD, reference)
        self._layout_limit = scores.copy_threshold(scores.euclidean(training.layouts_ND, training.layouts_ND))
        self._feature_limit = scores.copy_threshold(scores.cosine_distances(self._training_MD, self._training_MD))

    def of(self, planned: Sequence[PlannedImage], places: Sequence[int]) -> Scores:
        """Scores of one checkpoint's planned images, or of the base's. places: where each stands among the rows."""
        checkpoint = planned[0].checkpoint
        pairs = list(zip(planned, places, strict=True))
        asked = [(one, place) for one, place in pairs if one.prompt.kind != "plain"]
        plain = [(one, place) for one, place in pairs if one.prompt.kind == "plain"]
        own = [place for _, place in asked]
        base = [self._base_place(one) for one, _ in asked]
        saturation, contrast = self._looked.tones_N2[own].mean(dim=0).tolist()
        adherence, of_base = self._adherence(own), self._adherence(base)
        spread, base_spread = self._diversity(own), self._diversity(base)
        return Scores(
            label="base" if checkpoint is None else checkpoint.label,
            step=None if checkpoint is None else checkpoint.step,
            file=None if checkpoint is None else str(checkpoint.path),
            num_images=len(own),
            likeness=scores.likeness(self._features_ND[own], self._training_MD),
            adherence=adherence,
            adherence_of_base=None if adherence is None or not of_base else adherence / of_base,
            diversity=None if spread is None or not base_spread else spread / base_spread,
            leak=self._leak(plain),
            saturation=saturation,
            contrast=contrast,
            burned=self._burned(own, base),
            copies=self._copies(own),
            content=None if checkpoint is None else checkpoint.content,
        )

    def _base_place(self, one: PlannedImage) -> int:
        return self._base[one.prompt.bare, one.seed]

    def _adherence(self, places: Sequence[int]) -> float | None:
        values = self._looked.adherence_N[list(places)]
        known = values[~values.isnan()]
        return float(known.mean()) if len(known) else None

    def _diversity(self, places: Sequence[int]) -> float | None:
        features = self._features_ND[list(places)]
        return scores.diversity(features.view(-1, self._num_seeds, features.shape[1]))

    def _leak(self, plain: Sequence[tuple[PlannedImage, int]]) -> float | None:
        if not plain:
            return None
        base = [self._base_place(one) for one, _ in plain]
        spread = self._diversity(base)
        if spread is None:  # a single seed: other prompts stand in for other seeds
            features = self._features_ND[list(self._base.values())]
            spread = scores.diversity(features[None])
        if spread is None:
            return None
        return scores.leak(self._features_ND[[place for _, place in plain]], self._features_ND[base], spread)

    def _burned(self, own: Sequence[int], base: Sequence[int]) -> int:
        """Images beyond all training images and all of the base's, in saturation or in contrast."""
        tones_N2 = self._looked.tones_N2
        reference = torch.cat([self._training.tones_N2, tones_N2[list(base)]])
        return int(scores.is_burned(tones_N2[list(own)], reference).any(dim=1).sum())

    def _copies(self, own: Sequence[int]) -> tuple[Copy, ...]:
        """Images nearer to a training image than training images are to each other, in layout and in features."""
        layouts_NM = scores.euclidean(self._looked.layouts_ND[list(own)], self._training.layouts_ND)
        features_NM = scores.cosine_distances(self._features_ND[list(own)], self._training_MD)
        found = scores.nearest(layouts_NM)
        near_N = scores.is_copy(found.distances_N, self._layout_limit)
        # Of the very image that the layout is nearest to: near to two different ones is no copy of either.
        alike_N = scores.is_copy(_picked(features_NM, found.places_N), self._feature_limit)
        return tuple(
            Copy(
                str(self._rows[place].path),
                self._names[int(found.places_N[row])],
                float(found.distances_N[row]) / (self._layout_limit or 1.0),
            )
            for row, place in enumerate(own)
            if near_N[row] and alike_N[row]
        )


def _picked(values_NM: Tensor, places_N: Tensor) -> Tensor:
    return values_NM.gather(1, places_N[:, None])[:, 0]
