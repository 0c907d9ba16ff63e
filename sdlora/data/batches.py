"""The batches of an epoch, and random numbers that depend on counters only.

No generator is carried from step to step. Each draw comes from one seeded by the run's seed, what it is for and where
the run stands, so that a resumed run repeats the uninterrupted one exactly:

    sample_generator(seed, "noise", step, sample)
    sample_random(seed, "caption", epoch, index)
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdlora.data.buckets import Bucket, BucketedImage

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *counters: int | str) -> int:
    """A seed of 64 bits for one draw: the first 8 bytes of SHA-256 over "seed/counter/counter...", big-endian.

    counters: first what is drawn (a word without "/"), then numbers. The same on every machine and Python.
    """
    # A hash and not a stream of random numbers: any draw can be made again by itself, in any order, in any process.
    text = "/".join(str(part) for part in (seed, *counters))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def sample_random(seed: int, *counters: int | str) -> random.Random:
    """Python's generator for one draw: captions, crops, flips, orders."""
    return random.Random(derive_seed(seed, *counters))


def sample_generator(seed: int, *counters: int | str) -> torch.Generator:
    """Torch's CPU generator for one draw: noise, timesteps. (Torch itself uses 32 bits of the seed on the CPU.)"""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *counters))


def plan_epoch(placed: Sequence[BucketedImage], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices into `placed` for each batch of an epoch, shuffled.

    Each index comes exactly `record.repeats` times. All images of a batch share one bucket; a bucket's last batch
    may be short, and is neither dropped nor filled up.
    """
    by_bucket: dict[Bucket, list[int]] = defaultdict(list)
    for index, item in enumerate(placed):
        by_bucket[item.placement.bucket] += [index] * item.record.repeats
    generator = sample_random(seed, "epoch", epoch)
    # Sorted, as the order of a dictionary would hang on which image was found first.
    batches: list[list[int]] = []
    for _, indices in sorted(by_bucket.items()):
        generator.shuffle(indices)
        batches += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    generator.shuffle(batches)
    return batches
