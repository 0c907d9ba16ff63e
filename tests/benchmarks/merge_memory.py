"""Memory of `sdlora merge` on an SD 1.5-sized checkpoint, and whether the result predicts as the live adapter does.

`python tests/benchmarks/merge_memory.py` builds a random-weight SD 1.5 of true width (fp16, about 2 GB, in a temporary
folder), bakes a random adapter for all layers into the single file and into the folder, and prints each one's figures.
Needs about 6 GiB of memory and 8 GB of disk.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.writing import write_adapter
from sdlora.adapters.live.attach import attach
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from sdlora.models.bundle import Bundle
from sdlora.models.loading import load
from tests.support.tiny_models import build, save_single_file


@torch.no_grad()
def prediction(bundle: Bundle) -> Tensor:
    """The UNet's prediction for one caption and fixed noise, 256 px."""
    texts = bundle.family.encode_text(bundle, ["a red square"])
    noisy_BCHW = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    return bundle.family.predict(bundle, noisy_BCHW, torch.tensor([500]), texts, None)


@torch.no_grad()
def make_adapter(bundle: Bundle, target: Path) -> None:
    """Attach a random adapter of all layers and write its file; the bundle keeps it live."""
    adapter = attach(bundle, AdapterConfig(rank=16, layers="all+conv", text_encoder=True))
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    write_adapter(target, adapter.module_weights(), TrainingFacts("random", adapter.family), precision="fp32")


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
"""
"""Runs a command from a process that is small itself: Linux counts the parent's memory at the start as the child's."""


def merge(base: Path, adapter: Path, target: Path) -> tuple[float, float]:
    """Run the command in a process of its own; returns its peak memory in MiB and its CPU seconds."""
    command = [sys.executable, "-m", "sdlora", "merge", "--base", str(base), str(adapter), "--out", str(target)]
    measured = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, stdout=subprocess.PIPE, text=True)
    peak_kib, cpu_seconds = measured.stdout.split()
    return float(peak_kib) / 1024, float(cpu_seconds)


def size_mib(path: Path) -> float:
    """Size of a file, or of all weight files below a folder."""
    files = path.rglob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 2**20


def main() -> None:
    """Print the figures of both layouts."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = build("sd1", root / "sd15", width="true", dtype=torch.float16)
        file = save_single_file(folder, root / "sd15.safetensors")
        base = load(BaseModelConfig(model=str(folder), precision="fp32"))
        plain = prediction(base)
        make_adapter(base, root / "adapter.safetensors")
        live = prediction(base)
        del base
        for source, target in ((file, root / "merged.safetensors"), (folder, root / "merged")):
            peak_mib, cpu_seconds = merge(source, root / "adapter.safetensors", target)
            found = prediction(load(BaseModelConfig(model=str(target), precision="fp32")))
            error = float((found - live).norm() / (live - plain).norm())
            print(
                f"{source.name}: model {size_mib(source):,.0f} MiB, peak memory {peak_mib:,.0f} MiB, "
                f"{cpu_seconds:.0f} CPU s; prediction within {error:.2%} of the adapter's effect"
            )


if __name__ == "__main__":
    main()
