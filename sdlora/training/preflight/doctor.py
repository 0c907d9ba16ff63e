"""What this machine and its installation can do, tried rather than looked up; each fault with what fixes it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, Literal

import psutil

from sdlora.constants import GIB
from sdlora.data.cache import default_cache_folder
from sdlora.errors import how_to_install
from sdlora.version import __version__

Verdict = Literal["ok", "note", "problem"]
_OPTIONAL = {
    "gradio": ("webui", "the page (sdlora webui)"),
    "bitsandbytes": ("8bit", "8-bit optimizers and quantised bases"),
    "prodigyopt": ("prodigy", "the optimizer prodigy"),
    "schedulefree": ("schedule-free", "the optimizer schedule_free_adamw"),
    "lion-pytorch": ("lion", "the optimizer lion"),
    "tensorboard": ("tensorboard", "outputs.tensorboard"),
    "wandb": ("wandb", "outputs.wandb"),
    "onnxruntime": ("caption", "WD14 taggers and masks by a network"),
    "pyarrow": ("parquet", "parquet files"),
}
_CUDA_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"
_FEW_GIB = 10.0
_HUB_SECONDS = 3.0
_UNITY = 1e-2


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found and, where it is at fault, the command or setting that helps."""

    topic: str
    verdict: Verdict
    text: str
    fix: str = ""


def examine(*, with_network: bool = True) -> Iterator[Finding]:
    """Everything, in the order in which one wants to know it. Loads torch. with_network: try to reach the hub."""
    yield Finding("sdlora", "ok", f"{__version__} in {Path(__file__).parents[2]}")
    yield from _python()
    yield from _packages()
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", "problem", f"can't be loaded: {error}", "pip install --force-reinstall torch")
        return
    yield from _torch(torch)
    yield from _precisions(torch)
    yield from _optional(torch)
    yield from _memory(torch)
    yield from _disk()
    if with_network:
        yield _hub()


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} on {platform.platform()}"
    in_environment = sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ
    if sys.maxsize <= 2**32:
        yield Finding("python", "problem", f"{text}, 32 bits", "install a 64-bit Python 3.11")
    elif not in_environment:
        yield Finding("python", "note", f"{text}, without a virtual environment", "python -m venv .venv")
    else:
        yield Finding("python", "ok", text)


def _packages() -> Iterator[Finding]:
    """The required packages against the ranges that sdlora declares."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires("sdlora") or []]
    except metadata.PackageNotFoundError:
        yield Finding("packages", "problem", "sdlora is not installed, only lies here", "pip install -e .")
        return
    wrong = []
    versions = []
    for requirement in declared:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append((f"{requirement.name} is missing", str(requirement)))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append((f"{requirement.name} {version}, wanted is {requirement.specifier}", str(requirement)))
        if requirement.name in ("torch", "diffusers", "transformers", "peft", "accelerate"):
            versions.append(f"{requirement.name} {version}")
    for text, wanted in wrong:
        yield Finding("packages", "problem", text, f"pip install '{wanted}'")
    if not wrong:
        yield Finding("packages", "ok", ", ".join(versions))


def _torch(torch: Any) -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory_gib = properties.total_memory / GIB
            yield Finding(
                "device", "ok", f"cuda:{index} {properties.name}, {memory_gib:.1f} GiB, CUDA {torch.version.cuda}"
            )
        return
    if torch.backends.mps.is_available():
        yield Finding("device", "ok", "Apple silicon (mps)")
        return
    card = _card()
    if card and torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        text = f"this machine has {card}, but torch {torch.__version__} is a build without CUDA"
        yield Finding("device", "problem", text, _CUDA_TORCH)
    elif card:
        driver = "the driver is missing or too old for it: install the newest NVIDIA driver and restart"
        yield Finding("device", "problem", f"{card} is not usable by torch {torch.__version__}", driver)
    else:
        threads = f"{torch.get_num_threads()} threads"
        yield Finding("device", "note", f"no card: the processor trains ({threads}), slowly for SD 1.5 and XL")


def _card() -> str:
    """What the system says of an NVIDIA card, "" for none; asks no library that may be wrong itself."""
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").is_file() or Path("/dev/nvidia0").exists():
        return "an NVIDIA card"
    vendors = []
    for path in Path("/sys/class/drm").glob("card*/device/vendor"):
        with suppress(OSError):
            vendors.append(path.read_text(encoding="ascii").strip())
    # 0x10de is NVIDIA's PCI vendor number.
    return "an NVIDIA card" if "0x10de" in vendors else ""


def _precisions(torch: Any) -> Iterator[Finding]:
    """Each number type tried with the step that training makes: a product, forward and backward, under autocast."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        weight = torch.eye(64, device=device, requires_grad=True)
        try:
            with torch.autocast(device, dtype=dtype):
                result = torch.ones(8, 64, device=device) @ weight
            result.float().sum().backward()
            # The product of ones with the identity is ones again, in any number type.
            right = bool((result.float() - 1).abs().max() < _UNITY and torch.isfinite(weight.grad).all())
        except (RuntimeError, NotImplementedError, ValueError) as error:
            yield Finding(name, "note", f"does not work on {device} ({error})", "set optimization.precision=fp32")
            continue
        if right:
            yield Finding(name, "ok", f"trains on {device}{_emulated(torch, device, name)}")
        else:
            yield Finding(name, "problem", f"gives wrong numbers on {device}", "set optimization.precision=fp32")


def _emulated(torch: Any, device: str, name: str) -> str:
    if device == "cuda":
        # Ampere brought bf16, Volta the tensor cores that make fp16 pay.
        native = torch.cuda.get_device_capability() >= ((8, 0) if name == "bf16" else (7, 0))
        return "" if native else ", emulated: slow on this card"
    if device == "cpu":
        from sdlora.generation.request.compute import processor_has_bf16

        return "" if name == "bf16" and processor_has_bf16() else ", emulated: slower than fp32 on this processor"
    return ""


def _optional(torch: Any) -> Iterator[Finding]:
    for package, (extra, purpose) in _OPTIONAL.items():
        module = package.replace("-", "_")
        if util.find_spec(module) is None:
            yield Finding(package, "note", f"not installed: needed for {purpose}", how_to_install(extra))
            continue
        try:
            if package in _TRIALS:
                _TRIALS[package](torch)
            else:
                import_module(module)
        except Exception as error:  # whatever a foreign package throws is what we are here to report
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            yield Finding(
                package, "problem", f"is installed but fails ({reason})", f"pip install --force-reinstall {package}"
            )
            continue
        yield Finding(package, "ok", f"{metadata.version(package)}, for {purpose}")


def _try_bitsandbytes(torch: Any) -> None:
    import bitsandbytes

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.nn.Parameter(torch.ones(64, 64, device=device))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.1, min_8bit_size=256)
    weight.square().sum().backward()
    optimizer.step()
    if not bool((weight < 1).all()):
        raise RuntimeError("an 8-bit step changes nothing")
    values = torch.randn(64, 64, device=device)
    packed, state = bitsandbytes.functional.quantize_4bit(values, quant_type="nf4")
    error = (bitsandbytes.functional.dequantize_4bit(packed, state) - values).abs().mean()
    # Unit normals lose less than 0.1 to NF4's rounding; what is unpacked wrongly is off by about 1.
    if not float(error) < 0.2:
        raise RuntimeError(f"4-bit values come back wrong (mean error {float(error):.2f})")


def _try_onnxruntime(torch: Any) -> None:
    import onnxruntime

    if not onnxruntime.get_available_providers():
        raise RuntimeError("it offers no way to calculate")


_TRIALS: dict[str, Callable[[Any], object]] = {
    "bitsandbytes": _try_bitsandbytes,
    "onnxruntime": _try_onnxruntime,
}


def _memory(torch: Any) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    text = f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} free; {os.cpu_count()} processors"
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and not torch.cuda.is_available() and int(threads) * 2 <= (os.cpu_count() or 1):
        yield Finding("memory", "note", f"{text}; OMP_NUM_THREADS={threads} leaves most idle", "unset OMP_NUM_THREADS")
    else:
        yield Finding("memory", "ok", text)


def _disk() -> Iterator[Finding]:
    for name, folder, setting in (
        ("this folder", Path.cwd(), "outputs.folder"),
        ("cache", default_cache_folder(), "images.cache_folder or $SDLORA_CACHE"),
    ):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            free_gib = shutil.disk_usage(nearest).free / GIB
        except OSError as error:
            yield Finding(name, "problem", f"{folder} can't be looked at ({error.strerror})", f"set {setting}")
            continue
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            yield Finding(name, "problem", f"{folder} can't be written", f"set {setting} to a folder of yours")
        elif free_gib < _FEW_GIB:
            yield Finding(name, "note", f"{folder}: {free_gib:.1f} GiB free", f"set {setting} to a larger disk")
        else:
            yield Finding(name, "ok", f"{folder}: {free_gib:.0f} GiB free")


def _hub() -> Finding:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "HF_HUB_OFFLINE is set: models come from this disk only", "unset HF_HUB_OFFLINE")
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_HUB_SECONDS):
            return Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = f"{constants.ENDPOINT} can't be reached ({reason})"
        return Finding("hub", "note", text, "give base_model.model a local file or folder")
