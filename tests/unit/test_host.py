"""The allocator setting, tried in a process of its own, and memory that is given back."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sdlora.models import host

MEASURE = """
import resource, sys
import torch
from sdlora.models.host import tune_malloc
if sys.argv[1] == "tuned":
    assert tune_malloc()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(15): torch.ones(16_000_000)
before = faults()
for _ in range(5): torch.ones(16_000_000)
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_large_blocks_are_kept_and_not_faulted_in_again():
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", MEASURE, mode], capture_output=True, check=True).stdout)
        for mode in ("plain", "tuned")
    }
    assert faults["tuned"] * 10 < faults["plain"]


def test_nothing_happens_on_other_platforms(monkeypatch):
    monkeypatch.setattr(host.platform, "system", lambda: "Darwin")
    assert host.tune_malloc() is False


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_forgotten_pages_of_a_weight_file_are_read_again_and_other_memory_is_left_alone(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from sdlora.models.host import forget_mapped

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**20

    expected = torch.arange(8 * 2**20, dtype=torch.float32)
    save_file({"weight": expected}, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        mapped = file.get_tensor("weight")
    own = expected.clone()
    assert torch.equal(mapped, own)
    before = resident_mib()
    forget_mapped([mapped, own])
    assert resident_mib() < before - 25
    assert torch.equal(mapped, expected)
    assert torch.equal(own, expected)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_a_mapped_weight_that_was_changed_in_place_keeps_its_change(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    save_file({"weight": torch.zeros(2**16)}, tmp_path / "weights.safetensors")
    merged = load_file(tmp_path / "weights.safetensors")["weight"]
    merged += 1
    host.forget_mapped([merged])
    assert merged.min() == 1
