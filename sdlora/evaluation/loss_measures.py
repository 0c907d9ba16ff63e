"""Losses of held-out and of training images: how a checkpoint generalises, and which images are trouble.

Legend: N images, K draws, M captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.generate import UsedAdapter
from sdlora.config.train import TrainConfig
from sdlora.data.batches import sample_random
from sdlora.data.buckets import BucketedImage
from sdlora.data.cache import Cache, default_cache_folder
from sdlora.evaluation import problem_images, scores
from sdlora.evaluation.findings import Interval, Kind, Problem
from sdlora.evaluation.losses import WHOLE, MeasuredImage, measure, timesteps
from sdlora.evaluation.training_images import TrainingImages
from sdlora.generation.generate import Generator
from sdlora.training.inputs.latents import LatentSource

_CONTENT = (0.3, 0.75)
"""Share of the schedule in which captions are compared. On builtin:emoji those that belong to an image lowered its loss
here in both styles tried; in less or more noise they raised it in one of them (docs/guides/evaluate.md)."""

Tell = Callable[[int, int], None]
Adapters = Sequence[UsedAdapter]


class LossMeasures:
    """Measures images with a loaded base model and any adapters on it, always with the same draws."""

    def __init__(
        self, generator: Generator, train: TrainConfig, config: EvaluateConfig, training: TrainingImages
    ) -> None:
        self._generator = generator
        self._captions = train.captions
        self._config = config
        self._training = training
        cache = Cache(train.images.cache_folder or default_cache_folder()) if train.images.cache else None
        self._latents = LatentSource(generator.bundle, train.images, cache)

    def held_out(self, checkpoints: Sequence[Adapters], tell: Tell) -> list[Interval]:
        """Loss of each checkpoint on the held-out images over the base's; nothing when none are held out."""
        placed = self._training.held_out
        if not placed:
            return []
        count = Counted(tell, len(placed) * (1 + len(checkpoints)))
        captions = [item.record.plain_caption() for item in placed]
        base_NK = self._losses(placed, (), captions, count)
        return [
            scores.relative_loss(self._losses(placed, adapters, captions, count), base_NK, self._config.seed)
            for adapters in checkpoints
        ]

    def problems(self, first: Adapters, chosen: Adapters, features_ND: Tensor, tell: Tell) -> dict[Kind, list[Problem]]:
        """All training images by how much they stand out, the worst first, under each kind of trouble.

        first: the earliest checkpoint's adapters; chosen: the taken one's. features_ND: of the training images.
        """
        placed, names = self._training.placed, self._training.names
        captions = [item.record.plain_caption() for item in placed]
        swaps = _Swaps.plan(captions, self._config.problem_images.captions, self._config.seed)
        is_early = [one.file for one in first] != [one.file for one in chosen]
        count = Counted(tell, (2 + is_early) * len(placed) + 2 * len(swaps.jobs))
        base_NK = self._losses(placed, (), captions, count)
        chosen_NK = self._losses(placed, chosen, captions, count)
        first_NK = self._losses(placed, first, captions, count) if is_early else chosen_NK
        hard_N = problem_images.normalised(chosen_NK)
        left_N = problem_images.relative(chosen_NK, base_NK)
        early_N = problem_images.relative(first_NK, base_NK)
        found: dict[Kind, tuple[Tensor, list[str]]] = {
            "hardest": (hard_N, [f"{one:.2f} times the mean loss" for one in hard_N.tolist()]),
            "never learned": (left_N, [f"{one:.0%} of the base's loss is left" for one in left_N.tolist()]),
            "memorised first": (-early_N, [f"only {one:.0%} of the base's loss is left" for one in early_N.tolist()]),
        }
        if len(set(captions)) > 1:
            asked = [placed[place] for place, _ in swaps.jobs]
            texts = [text for _, text in swaps.jobs]
            by_model = [self._losses(asked, adapters, texts, count, _CONTENT) for adapters in ((), first)]
            found["mislabelled"] = swaps.judged(by_model)
        if len(placed) > 2:
            alike_N = problem_images.likeness_to_others(features_ND)
            told = [f"likeness to the other images {one:.2f}" for one in alike_N.tolist()]
            found["unlike the others"] = (-alike_N, told)
        return {
            kind: problem_images.ranked(kind, names, problem_images.outlying(values_N), sentences)
            for kind, (values_N, sentences) in found.items()
        }

    def _losses(
        self,
        placed: Sequence[BucketedImage],
        adapters: Adapters,
        captions: Sequence[str],
        count: Counted,
        between: tuple[float, float] = WHOLE,
    ) -> Tensor:
        """losses_NK of placed images under these captions with these adapters. between: shares of the schedule."""
        total = len(self._generator.bundle.schedule)
        steps = timesteps(self._config.problem_images.draws, total, between)
        texts = list(dict.fromkeys(["", *captions]))
        limits = self._captions
        encoded = self._generator.encode_texts(adapters, texts, max_tokens=limits.max_tokens, weights=limits.weights)
        states = dict(zip(texts, encoded, strict=True))
        images = []
        for item, caption in zip(placed, captions, strict=True):
            crop = self._latents.fixed(item)
            images.append(MeasuredImage(crop.mean_CHW, states[caption], crop.size_conditions))
        with self._generator.adapted(adapters) as bundle:
            losses_NK = measure(
                bundle,
                images,
                steps,
                seed=self._config.seed,
                empty=states[""],
                batch_size=2 * self._config.batch_size,
                on_progress=count.tell,
            )
        count.add(len(placed))
        return losses_NK


@dataclass(frozen=True)
class _Swaps:
    """Which images are tried with which captions: in groups, each image with the captions of all of its group."""

    captions: Sequence[str]
    groups: Sequence[Sequence[int]]
    """Places of the images in each group."""

    @classmethod
    def plan(cls, captions: Sequence[str], most: int, seed: int) -> _Swaps:
        """Groups of at most `most` + 1 images, the same every time. No image is tried with more captions of others."""
        order = list(range(len(captions)))
        sample_random(seed, "captions").shuffle(order)
        number = math.ceil(len(order) / (most + 1))
        return cls(captions, [order[first::number] for first in range(number)])

    def texts(self, group: Sequence[int]) -> list[str]:
        """The captions of a group, each once."""
        return list(dict.fromkeys(self.captions[place] for place in group))

    @property
    def jobs(self) -> list[tuple[int, str]]:
        """Place of an image, and a caption, group by group."""
        return [(place, text) for group in self.groups for place in group for text in self.texts(group)]

    def judged(self, by_model: Sequence[Tensor]) -> tuple[Tensor, list[str]]:
        """How doubtful each image's caption is, and a sentence for each. by_model: losses_JK of the jobs.

        The base knows what things are called and may not know them in this style; a young adapter knows the style, and
        has not learned wrong captions by heart yet. A caption that neither finds fitting is wrong more likely.
        """
        doubts_N, sentences = torch.zeros(len(self.captions)), [""] * len(self.captions)
        first = 0
        for group in self.groups:
            texts = self.texts(group)
            size = len(group), len(texts), -1
            own_J = slice(first, first + len(group) * len(texts))
            misfit_NM = torch.stack([problem_images.misfits(one[own_J].reshape(size)) for one in by_model]).mean(dim=0)
            for row, place in enumerate(group):
                caption, best = self.captions[place], int(misfit_NM[row].argmin())
                own = misfit_NM[row, texts.index(caption)]
                gain = float(own - misfit_NM[row, best])
                doubts_N[place] = own
                sentences[place] = (
                    f"'{texts[best]}' fits better than its caption '{caption}', by {gain:.1f} deviations"
                    if gain > 0
                    else f"its caption '{caption}' fits best of {len(texts)}, by {-float(own):.1f} deviations"
                )
            first = own_J.stop
        return doubts_N, sentences


class Counted:
    """Progress of several measurements as one count."""

    def __init__(self, tell: Tell, total: int) -> None:
        self._tell = tell
        self._total = total
        self._before = 0

    def tell(self, done: int) -> None:
        """So many of the present measurement are done."""
        self._tell(self._before + done, self._total)

    def add(self, number: int) -> None:
        """The present measurement, of so many, is over."""
        self._before += number
