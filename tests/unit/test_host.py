"""The allocator setting, tried in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

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
