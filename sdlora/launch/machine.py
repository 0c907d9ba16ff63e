"""Facts about this machine: versions, memory, devices, how full folders are. Loads no torch in this process."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from sdlora.words import size_in_words

PACKAGES = (
    "sdlora",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "pillow",
    "gradio",
)
_ASK_SECONDS = 180
_TORCH_QUESTION = """
import json, torch
devices = [f"{torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory / 2**30:.1f} GiB"
           for i in range(torch.cuda.device_count())]
if torch.backends.mps.is_available():
    devices.append("Apple GPU (mps)")
print(json.dumps({"build": torch.__version__, "threads": torch.get_num_threads(), "devices": devices}))
"""


def versions() -> list[tuple[str, str]]:
    """Python, the system, and each package that matters with its version."""
    found = [("Python", platform.python_version()), ("System", f"{platform.system()} {platform.release()}")]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found


def memory() -> list[tuple[str, str]]:
    """Main memory of the machine and of this process."""
    machine = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    return [
        ("Main memory", f"{size_in_words(machine.available)} free of {size_in_words(machine.total)}"),
        ("This process", size_in_words(own)),
        ("Processors", str(os.cpu_count())),
    ]


def cards() -> list[tuple[str, str]]:
    """NVIDIA cards with their memory, as nvidia-smi tells them; empty where there are none."""
    # The driver's own program: torch would take seconds here, and some hundred MiB of the card for good.
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    question = [program, "--query-gpu=name,memory.used,memory.total,utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [card for line in answer.splitlines() if (card := _card(line)) is not None]


def ask_torch() -> list[tuple[str, str]]:
    """What PyTorch says about itself, asked in a process of its own: it takes some seconds."""
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _TORCH_QUESTION], capture_output=True, text=True, timeout=_ASK_SECONDS, check=True
        )
        told = json.loads(answer.stdout)
    except subprocess.CalledProcessError as error:
        return [("PyTorch", f"does not load: {error.stderr.strip().splitlines()[-1] if error.stderr else error}")]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return [("PyTorch", f"gave no answer: {error}")]
    devices = told["devices"] or ["none: training and generating run on the processor"]
    return [("PyTorch", told["build"]), ("Threads", str(told["threads"])), *(("Device", device) for device in devices)]


def count_entries(folder: Path) -> int:
    """How many things lie in a folder, hidden ones left out; 0 without a folder."""
    return sum(not path.name.startswith(".") for path in folder.iterdir()) if folder.is_dir() else 0


def disk_words(folder: Path) -> str:
    """`12.3 GiB free of 200.0 GiB`."""
    usage = shutil.disk_usage(folder)
    return f"{size_in_words(usage.free)} free of {size_in_words(usage.total)}"


def _card(line: str) -> tuple[str, str] | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4:
        return None
    name, used, total, load = parts
    return name, f"{used} of {total} MiB used, {load} % busy"
