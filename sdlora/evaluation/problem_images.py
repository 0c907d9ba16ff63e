"""Which training images are trouble: told from their losses, each measured with the same timesteps and noise.

Legend: N images, K draws, M captions tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["hardest", "never learned", "memorised first", "mislabelled", "unlike the others"]
_MAD_TO_SIGMA = 1.4826
"""Of a normal distribution: its standard deviation over its median absolute deviation."""


@dataclass(frozen=True)
class Problem:
    """One image's place under one kind of trouble. score: how many robust standard deviations it stands out."""

    kind: Kind
    name: str
    score: float
    sentence: str


def normalised(losses_NK: Tensor) -> Tensor:
    """normalised_N: loss over the mean of all images with the same timestep and noise, averaged over the draws.

    1 is an image like the others, whatever the timesteps; the noise, the same for all, cancels out.
    """
    return (losses_NK / losses_NK.mean(dim=0, keepdim=True)).mean(dim=1)


def relative(losses_NK: Tensor, base_NK: Tensor) -> Tensor:
    """relative_N: the share of the base's loss that is left, averaged over the draws; 1 is nothing learned."""
    return (losses_NK / base_NK).mean(dim=1)


def outlying(values_N: Tensor) -> Tensor:
    """scores_N: distance from the median in robust standard deviations (median absolute deviation)."""
    centre = values_N.median()
    spread = float((values_N - centre).abs().median()) * _MAD_TO_SIGMA
    # Where more than half are alike to the last digit, whoever isn't stands out by the plain deviation.
    spread = spread or float(values_N.std(unbiased=False)) or 1.0
    return (values_N - centre) / spread


@dataclass(frozen=True)
class Swapped:
    """How an image's own caption does against those of others."""

    advantage: float
    """Loss with an average other caption less that with its own, over the former: near 0 or below, it doesn't fit."""
    best_other: int
    """Place of the caption, among those tried, that fits best."""
    gain: float
    """Share of the loss that this caption takes off, against the image's own."""
    certainty: float
    """That gain over its standard error, from draw to draw."""


def swapped(own_K: Tensor, others_MK: Tensor) -> Swapped:
    """Compare one image's losses under its own caption with those under M others, draw by draw."""
    mean_others_K = others_MK.mean(dim=0)
    advantage = float(((mean_others_K - own_K) / mean_others_K).mean())
    gains_MK = (own_K - others_MK) / own_K
    means_M = gains_MK.mean(dim=1)
    best = int(means_M.argmax())
    error = float(gains_MK[best].std()) / math.sqrt(own_K.shape[0]) if own_K.shape[0] > 1 else 0.0
    return Swapped(advantage, best, float(means_M[best]), float(means_M[best]) / max(error, 1e-9))


def likeness_to_others(features_ND: Tensor) -> Tensor:
    """likeness_N: mean cosine of each image to all others of the set."""
    unit_ND = torch.nn.functional.normalize(features_ND, dim=-1)
    count = len(unit_ND)
    cosines_NN = unit_ND @ unit_ND.T
    return (cosines_NN.sum(dim=1) - cosines_NN.diagonal()) / max(count - 1, 1)


def ranked(kind: Kind, names: Sequence[str], scores_N: Tensor, sentences: Sequence[str]) -> list[Problem]:
    """All images under one kind, those that stand out most first."""
    order = sorted(range(len(names)), key=lambda place: (-float(scores_N[place]), names[place]))
    return [Problem(kind, names[place], float(scores_N[place]), sentences[place]) for place in order]


def worst(by_kind: Mapping[Kind, Sequence[Problem]], listed: int) -> list[Problem]:
    """The images that stand out most of all, each once, under the kind in which it does."""
    best: dict[str, Problem] = {}
    for problems in by_kind.values():
        for problem in problems:
            known = best.get(problem.name)
            if known is None or problem.score > known.score:
                best[problem.name] = problem
    return sorted(best.values(), key=lambda one: (-one.score, one.name))[:listed]
