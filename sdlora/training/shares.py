"""How the images of a step are divided between the processes that train together.

A step is of the same images whatever the number of processes: `accumulation` batches of up to `batch_size` images. Each
process takes its share of them, so that one process and many follow the same curve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdlora.config.optimization import OptimizationConfig
from sdlora.errors import ConfigError

Rows = slice
"""Rows of one batch, the first included, the last not."""


def share(sizes: Sequence[int], index: int, count: int) -> Iterator[tuple[int, Rows]]:
    """What one of `count` processes takes of a step: the number of a batch in it, and which of its rows.

    sizes: images of each batch. Whole batches where they divide evenly, rows otherwise, which may be none in a step
    of short batches.
    """
    if len(sizes) % count == 0:
        each = len(sizes) // count
        for number in range(index * each, (index + 1) * each):
            yield number, slice(0, sizes[number])
        return
    total = sum(sizes)
    start, stop = total * index // count, total * (index + 1) // count
    first = 0
    for number, size in enumerate(sizes):
        rows = slice(max(start - first, 0), min(stop - first, size))
        if rows.start < rows.stop:
            yield number, rows
        first += size


def images_a_step(config: OptimizationConfig) -> int:
    """The global batch: images of one optimizer update, over all processes."""
    return config.batch_size * config.accumulation


def images_a_pass(config: OptimizationConfig, processes: int) -> int:
    """The most images that one process sends through the model at once."""
    full = [config.batch_size] * config.accumulation
    passes = (rows for index in range(processes) for _, rows in share(full, index, processes))
    return max((rows.stop - rows.start for rows in passes), default=0)


def check_shares(config: OptimizationConfig, processes: int) -> None:
    """Raise ConfigError where a step has fewer images than there are processes."""
    images = images_a_step(config)
    if images >= processes:
        return
    number = f"{images} image" if images == 1 else f"{images} images"
    raise ConfigError(
        "optimization.batch_size",
        [
            f"a step has {number} (batch_size={config.batch_size} x accumulation={config.accumulation}), which "
            f"{processes} processes can't share: set optimization.batch_size={-(-processes // config.accumulation)} or "
            f"more, or take {number.split()[0]} process{'es' if images > 1 else ''}. The batch is that of all "
            "processes together, and the learning rate stays as it is set"
        ],
    )


def in_words(config: OptimizationConfig, processes: int) -> str:
    """The sum in one line: `8 images a step (batch 4 x accumulation 2), 4 each of 2 processes`."""
    images = images_a_step(config)
    full = [config.batch_size] * config.accumulation
    counts = [sum(rows.stop - rows.start for _, rows in share(full, index, processes)) for index in range(processes)]
    each = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} or {max(counts)}"
    passes = images_a_pass(config, processes)
    return (
        f"{images} images a step (batch {config.batch_size} x accumulation {config.accumulation}), {each} for each of "
        f"{processes} processes, up to {passes} at once; steps and learning rate are those of one process"
    )
