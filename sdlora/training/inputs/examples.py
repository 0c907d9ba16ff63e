"""Batches by their position in the run: which images, which crops and captions, which noise.

Position p is the p-th batch since the run began. Everything random about it is a function of (seed, p, row).

Shapes: B batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sdlora.data.batches import plan_epoch, sample_generator, sample_random
from sdlora.data.buckets import BucketedImage
from sdlora.models.size_conditions import SizeConditions
from sdlora.training.inputs.latents import LatentSource


@dataclass(frozen=True)
class Batch:
    """What one forward pass trains on. Tensors are on the CPU."""

    latents_BCHW: Tensor
    captions: list[str]
    prior_captions: list[str]
    """The captions without the trigger: what the base model is asked for prior preservation."""
    size_conditions: list[SizeConditions]
    mask_B1HW: Tensor | None
    inpaint_B5HW: Tensor | None
    """Mask and masked picture, for an inpainting model."""
    loss_weights_B: Tensor
    """Factor on each image's loss, fp32."""
    is_class_B: Tensor
    names: list[str]
    """The image files, for messages."""
    generators: list[Generator]
    """One a row, for noise and timesteps."""
    numbers: list[int]
    """How many images the run has seen before each row, short batches counted as full ones."""
    whole: int
    """Images of the batch that these are of: more than these where it was divided."""
    captions_beside: list[str]
    """The captions of that whole batch: all are filled up to its longest one, however it is divided."""
    prior_captions_beside: list[str]

    def pieces(self, count: int) -> Iterator[Batch]:
        """The batch in up to `count` parts of nearly equal size, in order."""
        rows = len(self.names)
        edges = [round(rows * part / count) for part in range(count + 1)]
        for start, stop in itertools.pairwise(edges):
            if start == stop:
                continue
            part = slice(start, stop)
            yield Batch(
                latents_BCHW=self.latents_BCHW[part],
                captions=self.captions[part],
                prior_captions=self.prior_captions[part],
                size_conditions=self.size_conditions[part],
                mask_B1HW=self.mask_B1HW[part] if self.mask_B1HW is not None else None,
                inpaint_B5HW=self.inpaint_B5HW[part] if self.inpaint_B5HW is not None else None,
                loss_weights_B=self.loss_weights_B[part],
                is_class_B=self.is_class_B[part],
                names=self.names[part],
                generators=self.generators[part],
                numbers=self.numbers[part],
                whole=self.whole,
                captions_beside=self.captions_beside,
                prior_captions_beside=self.prior_captions_beside,
            )


class BatchSource:
    """The batches of a run, endlessly, epoch after epoch."""

    def __init__(
        self,
        placed: Sequence[BucketedImage],
        latents: LatentSource,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._placed = placed
        self._latents = latents
        self._batch_size = batch_size
        self._seed = seed
        self._plans: dict[int, list[list[int]]] = {0: plan_epoch(placed, batch_size, seed, 0)}
        self.batches_per_epoch = len(self._plans[0])

    def epoch_of(self, position: int) -> int:
        """The epoch, from 0, that a position lies in."""
        return position // self.batches_per_epoch

    def size(self, position: int) -> int:
        """How many images the batch at a position has."""
        return len(self._indices(position))

    def batch(self, position: int, part: slice | None = None) -> Batch:
        """The batch at a position, or some rows of it; the same whenever it is asked for, and whoever asks."""
        whole = [self._placed[item] for item in self._indices(position)]
        numbers = range(len(whole))[part or slice(None)]
        rows = [whole[row] for row in numbers]
        crops = [
            self._latents.sampled(
                item,
                sample_random(self._seed, "crop", position, row),
                sample_random(self._seed, "inpainting", position, row),
            )
            for row, item in zip(numbers, rows, strict=True)
        ]
        # Each row has its own generator, so that an image's noise doesn't depend on its neighbours or on the batch
        # size.
        generators = [sample_generator(self._seed, "noise", position, row) for row in numbers]
        captions = [
            item.record.trained_caption(sample_random(self._seed, "caption", position, row))
            for row, item in enumerate(whole)
        ]
        prior_captions = [item.record.prior_caption() for item in whole]
        # An image of a folder without masks has one of ones, in a batch with masks.
        masks = (
            [crop.mask_HW if crop.mask_HW is not None else torch.ones(crop.mean_CHW.shape[1:]) for crop in crops]
            if any(crop.mask_HW is not None for crop in crops)
            else []
        )
        inpaint = [crop.inpaint_5HW for crop in crops if crop.inpaint_5HW is not None]
        return Batch(
            # This uses up the first draws of each generator, so noise and timesteps come from where it left off.
            latents_BCHW=torch.stack([crop.sample(each) for crop, each in zip(crops, generators, strict=True)]),
            captions=[captions[row] for row in numbers],
            prior_captions=[prior_captions[row] for row in numbers],
            size_conditions=[crop.size_conditions for crop in crops],
            mask_B1HW=torch.stack(masks)[:, None] if masks else None,
            inpaint_B5HW=torch.stack(inpaint) if inpaint else None,
            loss_weights_B=torch.tensor([item.record.loss_weight for item in rows], dtype=torch.float32),
            is_class_B=torch.tensor([item.record.is_class for item in rows]),
            names=[item.record.path.name for item in rows],
            generators=generators,
            numbers=[position * self._batch_size + row for row in numbers],
            whole=len(whole),
            captions_beside=captions,
            prior_captions_beside=prior_captions,
        )

    def _indices(self, position: int) -> list[int]:
        epoch, index = divmod(position, self.batches_per_epoch)
        if epoch not in self._plans:
            # Of two epochs at most, as a step may lie in both; after a resume the first call makes the right one.
            kept = {number: plan for number, plan in self._plans.items() if number == epoch - 1}
            self._plans = {**kept, epoch: plan_epoch(self._placed, self._batch_size, self._seed, epoch)}
        return self._plans[epoch][index]
