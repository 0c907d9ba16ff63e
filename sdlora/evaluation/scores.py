"""Formulas of the scores: plain arithmetic on features and losses.

Legend: N images, M training images, D width of a feature, P prompts, S seeds, K draws.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdlora.evaluation.findings import Interval

_RESAMPLES = 1000
_CONFIDENCE = 0.95
_DUPLICATE = 1e-3
"""Distance over the set's median below which two training images count as copies of one another."""


def standardised(features_ND: Tensor, reference_ND: Tensor) -> Tensor:
    """Features with the reference's mean taken off and its spread as unit, of unit length; constant ones become 0."""
    spread_D = reference_ND.std(dim=0, unbiased=False)
    scaled_ND = (features_ND - reference_ND.mean(dim=0)) / spread_D.clamp(min=1e-6)
    return normalize(torch.where(spread_D > 1e-6, scaled_ND, torch.zeros_like(scaled_ND)), dim=-1)


def likeness(generated_ND: Tensor, training_MD: Tensor) -> float:
    """Mean cosine over all pairs of a generated and a training image (CLIP-I and DINO of Ruiz et al. 2023, 4.1)."""
    return float(likenesses(generated_ND, training_MD).mean())


def adherence(images_ND: Tensor, texts_ND: Tensor) -> Tensor:
    """Cosine of each image and its prompt (CLIP-T), adherence_N."""
    return (normalize(images_ND, dim=-1) * normalize(texts_ND, dim=-1)).sum(dim=-1)


def diversity(features_PSD: Tensor) -> float | None:
    """Mean distance, 1 - cosine, between images of one prompt with different seeds; None with a single seed."""
    seeds = features_PSD.shape[1]
    if seeds < 2:
        return None
    unit_PSD = normalize(features_PSD, dim=-1)
    cosines_PSS = unit_PSD @ unit_PSD.transpose(1, 2)
    pairs = list(itertools.combinations(range(seeds), 2))
    return float(torch.stack([1 - cosines_PSS[:, one, other] for one, other in pairs]).mean())


def leak(adapted_ND: Tensor, base_ND: Tensor, base_diversity: float) -> float:
    """Distance between images with and without the adapter, same prompt and seed, over that between seeds of the base.

    0: prompts without the trigger are left alone; 1: they change as much as by another seed.
    """
    distance = 1 - (normalize(adapted_ND, dim=-1) * normalize(base_ND, dim=-1)).sum(dim=-1).mean()
    return max(float(distance), 0.0) / max(base_diversity, 1e-6)


@dataclass(frozen=True)
class Nearest:
    """Each image's nearest training image: its place, and the distance."""

    places_N: Tensor
    distances_N: Tensor


def nearest(distances_NM: Tensor) -> Nearest:
    """The nearest of the training images to each image."""
    found = distances_NM.min(dim=1)
    return Nearest(found.indices, found.values)


def euclidean(one_ND: Tensor, other_MD: Tensor) -> Tensor:
    """Root mean square differences, distances_NM."""
    # By differences and not by dot products, whose rounding makes a copy of an image differ from it.
    rows = [((one_D - other_MD) ** 2).mean(dim=1).sqrt() for one_D in one_ND]
    return torch.stack(rows)


def cosine_distances(one_ND: Tensor, other_MD: Tensor) -> Tensor:
    """1 - cosine, distances_NM."""
    return (1 - normalize(one_ND, dim=-1) @ normalize(other_MD, dim=-1).T).clamp(min=0)


def copy_threshold(own_MM: Tensor) -> float | None:
    """The least distance from a training image to its nearest other one: what is closer than that is near a copy.

    own_MM: distances among the training images. Images that are in the set twice don't count; None with fewer than two
    different ones.
    """
    count = len(own_MM)
    if count < 2:
        return None
    apart = ~torch.eye(count, dtype=torch.bool)
    typical = float(own_MM[apart].median())
    different = own_MM[apart & (own_MM > _DUPLICATE * typical)]
    return float(different.min()) if len(different) else None


def is_copy(distances_N: Tensor, threshold: float | None) -> Tensor:
    """Which images are closer to a training image than any two training images are to each other."""
    return torch.zeros_like(distances_N, dtype=torch.bool) if threshold is None else distances_N < threshold


def is_burned(tones_N2: Tensor, reference_M2: Tensor) -> Tensor:
    """Which tones are above everything in the reference, by more than a tenth of its range; burned_N2."""
    highest_2, lowest_2 = reference_M2.max(dim=0).values, reference_M2.min(dim=0).values
    return tones_N2 > highest_2 + 0.1 * (highest_2 - lowest_2)


def likenesses(generated_ND: Tensor, training_MD: Tensor) -> Tensor:
    """Each image's mean cosine to the training images, likeness_N."""
    return (normalize(generated_ND, dim=-1) @ normalize(training_MD, dim=-1).T).mean(dim=1)


def share_of_likeness(part_N: Tensor, whole_N: Tensor, base_N: Tensor, seed: int = 0) -> Interval | None:
    """What part has of the way in likeness from the base to the whole, with an interval as of `relative_loss`.

    The three are of the same prompts and seeds, image by image. None where even that way is not sure to be one.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_RN = torch.randint(len(part_N), (_RESAMPLES, len(part_N)), generator=generator)
    parts_R, ways_R = ((each_N - base_N)[rows_RN].mean(dim=1) for each_N in (part_N, whole_N))
    edge = (1 - _CONFIDENCE) / 2
    if float(torch.quantile(ways_R, edge)) <= 0:
        return None
    low, high = torch.quantile(parts_R / ways_R.clamp(min=1e-6), torch.tensor([edge, 1 - edge])).tolist()
    return Interval(float((part_N - base_N).mean() / (whole_N - base_N).mean()), low, high)


def relative_loss(adapted_NK: Tensor, base_NK: Tensor, seed: int = 0) -> Interval:
    """Loss over the base's, with an interval from resampling images and draws (bootstrap, seeded).

    Both were measured with the same noise, so a resample takes the same entries of both and their noise cancels out.
    """
    images, draws = adapted_NK.shape
    generator = torch.Generator().manual_seed(seed)
    ratios = torch.empty(_RESAMPLES)
    for turn in range(_RESAMPLES):
        rows = torch.randint(images, (images,), generator=generator)
        columns = torch.randint(draws, (draws,), generator=generator)
        ratios[turn] = adapted_NK[rows][:, columns].sum() / base_NK[rows][:, columns].sum()
    edge = (1 - _CONFIDENCE) / 2
    low, high = torch.quantile(ratios, torch.tensor([edge, 1 - edge])).tolist()
    return Interval(float(adapted_NK.sum() / base_NK.sum()), low, high)
