"""Data-parallel CPU training: one single-threaded process a core, gradients averaged over gloo.

On two cores this is about 1.3 times as fast as one process with two threads.
"""

from __future__ import annotations

import ctypes
import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.multiprocessing.spawn import spawn

MALLOC_OPTIONS = {
    "M_MMAP_THRESHOLD": (-3, 1 << 30),
    "M_TRIM_THRESHOLD": (-1, 2_000_000_000),
    "M_TOP_PAD": (-2, 256 << 20),
}


def run_workers(train: Callable[..., None], num_workers: int, work: Path, *arguments: Any) -> None:
    """Call `train(rank, num_workers, work, *arguments)` in `num_workers` processes that can average gradients."""
    rendezvous = work / f".rendezvous-{train.__name__}"
    rendezvous.unlink(missing_ok=True)
    spawn(_enter, (train, num_workers, work, str(rendezvous), arguments), nprocs=num_workers)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: without this each step costs tens of thousands of page faults."""
    if sys.platform == "linux":
        for option, value in MALLOC_OPTIONS.values():
            ctypes.CDLL("libc.so.6").mallopt(option, value)


def average(values: Tensor, num_workers: int) -> None:
    """Replace `values` by its mean over the workers."""
    if num_workers > 1:
        torch.distributed.all_reduce(values)
        values.div_(num_workers)


def _enter(
    rank: int, train: Callable[..., None], num_workers: int, work: Path, rendezvous: str, arguments: Any
) -> None:
    keep_freed_memory()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(1)
    if num_workers > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=num_workers,
            timeout=datetime.timedelta(minutes=30),
        )
    train(rank, num_workers, work, *arguments)
