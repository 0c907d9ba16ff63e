"""Which training images are trouble: told from their losses, each measured with the same timesteps and noise.

Legend: N images, K draws, M captions tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def misfits(losses_NMK: Tensor) -> Tensor:
    """misfit_NM: how badly each caption fits each image, in deviations, mean over the draws; below 0 it fits well.

    What an image costs under any caption is taken off, and what a caption costs on any image: a plain picture has less
    loss than a busy one, a long caption more than a short one, whether or not they belong together.
    """
    rest_NMK = losses_NMK - losses_NMK.mean(dim=1, keepdim=True)
    # The median: the images that a caption belongs to are to stand out.
    rest_NMK = rest_NMK - rest_NMK.median(dim=0, keepdim=True).values
    spread_K = rest_NMK.std(dim=(0, 1), unbiased=False).clamp(min=1e-9)
    return (rest_NMK / spread_K).mean(dim=2)


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
