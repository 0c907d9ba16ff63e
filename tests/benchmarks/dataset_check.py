"""Speed and memory of `sdlora dataset check` on images of one megapixel.

`python tests/benchmarks/dataset_check.py 500 2000 5000` draws that many different JPEGs (1024x1024, quality 90, with
captions) into a temporary folder, checks the first so many of them in a process of its own without any cache, and
prints images per CPU second and the peak memory of each check. 5000 images take 2 GB of disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from PIL import Image

EDGE_PX = 1024
FINE_PX = EDGE_PX // 4
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
"""


def draw(number: int) -> Image.Image:
    """Coarse and fine random structure, as photographs have: other images have other shapes."""
    draws, size = numpy.random.default_rng(number), (EDGE_PX, EDGE_PX)
    coarse = Image.fromarray(draws.integers(0, 256, (12, 12, 3), numpy.uint8))
    fine = Image.fromarray(draws.integers(0, 256, (FINE_PX, FINE_PX), numpy.uint8)).convert("RGB")
    return Image.blend(coarse.resize(size, Image.Resampling.BICUBIC), fine.resize(size, Image.Resampling.BILINEAR), 0.2)


def fill(folder: Path, count: int) -> None:
    """Draw the images, with captions."""
    folder.mkdir()
    for number in range(count):
        stem = folder / f"{number:05d}"
        draw(number).save(stem.with_suffix(".jpg"), quality=90)
        stem.with_suffix(".txt").write_text(f"a scene, number {number}, soft light", encoding="utf-8")


def measure(folder: Path) -> tuple[float, float]:
    """CPU seconds and peak memory (MiB) of a check."""
    command = [sys.executable, "-m", "sdlora", "dataset", "check", str(folder)]
    command += ["--set", "images.resolution=1024", "--set", "images.cache=false"]
    measured = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    peak_kib, cpu_seconds = measured.stdout.split()
    return float(cpu_seconds), int(peak_kib) / 1024


def main(counts: list[int]) -> None:
    """Draw, check and print."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        fill(root / "all", max(counts))
        for count in counts:
            folder = root / f"first{count}"
            folder.mkdir()
            for path in sorted((root / "all").iterdir())[: 2 * count]:
                os.link(path, folder / path.name)
            seconds, peak_mib = measure(folder)
            speed = f"{seconds:.1f} CPU s, {count / seconds:.1f} images per CPU s"
            print(f"{count} images: {speed}, {peak_mib:.0f} MiB", flush=True)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [500, 2000, 5000])
