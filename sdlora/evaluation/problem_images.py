"""Which training images are trouble: told from their losses, each measured with the same timesteps and noise.

Legend: N images, K draws, M captions tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.evaluation.findings import Kind, Problem

CAUSES: tuple[Kind, ...] = ("mislabelled", "unlike the others")
"""Kinds that a person can do something about; the others are what shows of an image, whatever the cause."""
_SURE = 2.0
"""Deviations from which on a cause is named before what only shows."""
_MAD_TO_SIGMA = 1.4826
"""Of a normal distribution: its standard deviation over its median absolute deviation."""


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

    fit: float
    """How far its loss lies below those with other captions, in their standard deviations, mean over the draws."""
    best_other: int
    """Place of the caption, among those tried, that fits best."""
    gain: float
    """Share of the loss that this caption takes off, against the image's own."""


def swapped(own_K: Tensor, others_MK: Tensor) -> Swapped:
    """Compare one image's losses under its own caption with those under M others, draw by draw."""
    spread_K = others_MK.std(dim=0, unbiased=False).clamp(min=1e-9)
    gains_M = ((own_K - others_MK) / own_K).mean(dim=1)
    best = int(gains_M.argmax())
    return Swapped(float(((others_MK.mean(dim=0) - own_K) / spread_K).mean()), best, float(gains_M[best]))


def doubt(fits: Sequence[Tensor]) -> Tensor:
    """doubt_N: how little the captions fit by several models together. fits: fit_N of each.

    The base knows what things are called and may not know them in this style; a young adapter knows the style, and has
    not learned wrong captions by heart yet. A caption that neither finds fitting is wrong more likely.
    """
    return -torch.stack(list(fits)).mean(dim=0)


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
    """The images that stand out most of all, each once: causes that are clear first, then by their scores."""
    found = [problem for problems in by_kind.values() for problem in problems]
    found.sort(key=lambda one: (not (one.kind in CAUSES and one.score >= _SURE), -one.score, one.name))
    best: dict[str, Problem] = {}
    for problem in found:
        best.setdefault(problem.name, problem)
    return list(best.values())[:listed]
