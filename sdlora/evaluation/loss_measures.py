"""Losses of held-out and of training images: how a checkpoint generalises, and which images are trouble.

Legend: N images, K draws, M captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.generate import UsedAdapter
from sdlora.config.train import TrainConfig
from sdlora.data.batches import sample_random
from sdlora.data.buckets import BucketedImage
from sdlora.data.cache import Cache, default_cache_folder
from sdlora.evaluation import problem_images, scores
from sdlora.evaluation.losses import MeasuredImage, measure, timesteps
from sdlora.evaluation.problem_images import Kind, Problem
from sdlora.evaluation.training_images import TrainingImages
from sdlora.generation.generate import Generator
from sdlora.training.inputs.latents import LatentSource

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

    def held_out(self, checkpoints: Sequence[Adapters], tell: Tell) -> list[scores.Interval]:
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
        tried = self._other_captions(captions)
        jobs = [(place, text) for place, others in enumerate(tried) for text in others]
        is_early = [one.file for one in first] != [one.file for one in chosen]
        count = Counted(tell, (2 + is_early) * len(placed) + len(jobs))
        base_NK = self._losses(placed, (), captions, count)
        chosen_NK = self._losses(placed, chosen, captions, count)
        first_NK = self._losses(placed, first, captions, count) if is_early else chosen_NK
        swapped_JK = self._losses([placed[place] for place, _ in jobs], (), [text for _, text in jobs], count)
        hard_N = problem_images.normalised(chosen_NK)
        left_N = problem_images.relative(chosen_NK, base_NK)
        early_N = problem_images.relative(first_NK, base_NK)
        found: dict[Kind, tuple[Tensor, list[str]]] = {
            "hardest": (hard_N, [f"{one:.2f} times the mean loss" for one in hard_N.tolist()]),
            "never learned": (left_N, [f"{one:.0%} of the base's loss is left" for one in left_N.tolist()]),
            "memorised first": (-early_N, [f"only {one:.0%} of the base's loss is left" for one in early_N.tolist()]),
        }
        if jobs:
            found["mislabelled"] = _mislabelled(captions, jobs, base_NK, swapped_JK)
        if len(placed) > 2:
            alike_N = problem_images.likeness_to_others(features_ND)
            told = [f"likeness to the other images {one:.2f}" for one in alike_N.tolist()]
            found["unlike the others"] = (-alike_N, told)
        return {
            kind: problem_images.ranked(kind, names, problem_images.outlying(values_N), sentences)
            for kind, (values_N, sentences) in found.items()
        }

    def _losses(
        self, placed: Sequence[BucketedImage], adapters: Adapters, captions: Sequence[str], count: Counted
    ) -> Tensor:
        """losses_NK of placed images under these captions with these adapters."""
        steps = timesteps(self._config.problem_images.draws, len(self._generator.bundle.schedule.alphas_cumprod_T))
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

    def _other_captions(self, captions: Sequence[str]) -> list[list[str]]:
        """For each image captions of others to try, drawn by its place: the same every time."""
        different = list(dict.fromkeys(captions))
        found = []
        for place, own in enumerate(captions):
            others = [text for text in different if text != own]
            number = min(self._config.problem_images.captions, len(others))
            found.append(sample_random(self._config.seed, "captions", place).sample(others, number))
        return found


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


def _mislabelled(
    captions: Sequence[str], jobs: Sequence[tuple[int, str]], own_NK: Tensor, swapped_JK: Tensor
) -> tuple[Tensor, list[str]]:
    """How little each image's caption fits against others, as the base model sees it, and a sentence for each."""
    rows: dict[int, list[int]] = {}
    for number, (place, _) in enumerate(jobs):
        rows.setdefault(place, []).append(number)
    values, sentences = [], []
    for place, caption in enumerate(captions):
        if place not in rows:
            values.append(0.0)
            sentences.append("all captions are alike")
            continue
        result = problem_images.swapped(own_NK[place], swapped_JK[rows[place]])
        other = jobs[rows[place][result.best_other]][1]
        values.append(-result.advantage)
        if result.gain > 0:
            sentences.append(f"'{other}' fits {result.gain:.1%} better than '{caption}'")
        else:
            sentences.append(f"'{caption}' fits {result.advantage:.1%} better than others")
    return torch.tensor(values), sentences
