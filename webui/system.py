"""Facts for the Settings tab: versions, memory, devices, what the folders hold. Loads no torch in this process."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from webui.workspace import Workspace

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


@dataclass(frozen=True)
class Place:
    """A folder of the workspace."""

    what: str
    path: Path
    entries: int


@dataclass(frozen=True)
class Size:
    """How much lies in a folder."""

    files: int
    size_bytes: int


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
    """Main memory of the machine and of this page's server, and what the disk of a folder has free."""
    machine = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    return [
        ("Main memory", f"{gib(machine.available)} free of {gib(machine.total)}"),
        ("This page's server", gib(own)),
        ("Processors", str(os.cpu_count())),
    ]


def cards() -> list[tuple[str, str]]:
    """NVIDIA cards with their memory, as nvidia-smi tells them; empty where there are none."""
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
    devices = told["devices"] or ["none: training and drawing run on the processor"]
    return [("PyTorch", told["build"]), ("Threads", str(told["threads"])), *(("Device", device) for device in devices)]


def places(workspace: Workspace) -> list[Place]:
    """The workspace's folders and how many things are in each."""
    known = [
        ("Datasets", workspace.datasets),
        ("Runs", workspace.runs),
        ("Adapters", workspace.adapters),
        ("Base models", workspace.models),
        ("Mixes", workspace.mixes),
        ("Images", workspace.outputs),
        ("Trash", workspace.trash),
    ]
    return [Place(what, path, len(list(_visible(path)))) for what, path in known]


def disk_words(folder: Path) -> str:
    """`12.3 GiB free of 200.0 GiB`."""
    usage = shutil.disk_usage(folder)
    return f"{gib(usage.free)} free of {gib(usage.total)}"


def size_of(folder: Path) -> Size:
    """Number and size of all files below a folder; links are not followed."""
    files = size_bytes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted just now
                size_bytes += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118
                files += 1
    return Size(files, size_bytes)


def empty(folder: Path) -> Size:
    """Delete everything in a folder for good; returns what it was. Raises OSError for what can't be deleted."""
    before = size_of(folder)
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return before


def gib(size_bytes: float) -> str:
    """`1.5 GiB`, `20 MiB`."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def _visible(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else ()


def _card(line: str) -> tuple[str, str] | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4:
        return None
    name, used, total, load = parts
    return name, f"{used} of {total} MiB used, {load} % busy"
