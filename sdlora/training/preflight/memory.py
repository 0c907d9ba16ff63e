"""Memory and disk: estimates before the run, and the measured peak of memory during it."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import UNet2DConditionModel

from sdlora import disk
from sdlora.config.base_model import Precision
from sdlora.config.interval import length
from sdlora.config.train import TrainConfig
from sdlora.constants import GIB, LATENT_FACTOR, MIB
from sdlora.models.dtypes import DTYPES
from sdlora.training.inputs.images import RunImages

# Bytes of optimizer state per trained value.
# Moments in fp32 take 4 each, in 8 bits 1 and a share of their blocks' scales; Adafactor keeps rows and columns only.
_STATE_BYTES = {
    "adamw": 8.0,
    "adamw8bit": 2.03,
    "paged_adamw8bit": 2.03,
    "lion": 4.0,
    "adafactor": 1.0,
    "prodigy": 16.0,
    "schedule_free_adamw": 8.0,
}
_OTHER_STATE_BYTES = 8.0

# Values kept for the backward pass, per latent pixel and channel: of each residual layer without and with adapters on
# its convolutions, and of each transformer block. Fitted to the tensors that autograd saved for six UNets of 32 to 160
# channels; the sums meet those within 15%, checkpointed within 40%. In half precision some are kept twice.
_KEPT = {"fp32": (7, 9, 33), "bf16": (7, 14, 42), "fp16": (7, 14, 42)}
_KEPT_CHECKPOINTED = {"fp32": (3, 4, 2), "bf16": (3, 5, 3), "fp16": (3, 5, 3)}

_QUANTIZED_BITS = {"none": 0, "int8": 8.04, "nf4": 4.53, "nf4-double": 4.16}
"""Bits a UNet weight as measured by `weight_bytes` on SD 1.5's layout, scales and unquantised layers included."""

_WORKSPACE_SHARE = 0.1
_RUNTIME_BYTES = int(0.6 * GIB)


@dataclass(frozen=True)
class UNetShape:
    """What of a UNet's layout decides its activations, per resolution level from the finest."""

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    """Residual layers of the level's down block; its up block has one more."""
    transformer_blocks: tuple[int, ...]
    """Transformer blocks beside each residual layer, 0 for a level without attention."""
    middle_transformer_blocks: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> UNetShape:
        """Read it from a diffusers UNet2DConditionModel's config."""
        channels = tuple(config["block_out_channels"])
        depths = _per_level(config.get("transformer_layers_per_block", 1), len(channels))
        attends = ["CrossAttn" in block for block in config["down_block_types"]]
        return cls(
            channels=channels,
            layers=_per_level(config["layers_per_block"], len(channels)),
            transformer_blocks=tuple(depth if on else 0 for depth, on in zip(depths, attends, strict=True)),
            middle_transformer_blocks=depths[-1],
        )


@dataclass(frozen=True)
class MemoryPlan:
    """What a run's memory depends on. Sizes in pixels are those of the largest bucket."""

    frozen_bytes: int
    """Frozen weights on the device while training, as they are held (quantised, say)."""
    trained_parameters: int
    optimizer: str
    with_average: bool
    unet: UNetShape
    with_convolutions: bool
    """Whether convolutions get an adapter (layer set all+conv)."""
    batch_size: int
    width_px: int
    height_px: int
    precision: Precision
    checkpointing: bool

    @classmethod
    def of(cls, config: TrainConfig, images: RunImages, unet: UNet2DConditionModel, trainable: int) -> MemoryPlan:
        """From the settings, the images and the UNet's layout, whose weights need not be there.

        trainable: number of trained values.
        """
        return cls.for_size(config, *largest_size(images), unet, trainable)

    @classmethod
    def for_size(
        cls, config: TrainConfig, width_px: int, height_px: int, unet: UNet2DConditionModel, trainable: int
    ) -> MemoryPlan:
        """The same for images of a size."""
        base = config.resolved_base_model
        precision = config.optimization.precision if base.precision == "auto" else base.precision
        bits = _QUANTIZED_BITS[base.quantization] or 8 * DTYPES[precision].itemsize
        # The whole UNet counts at these bits: they were measured with the layers that quantising leaves alone.
        return cls(
            frozen_bytes=int(sum(parameter.numel() for parameter in unet.parameters()) * bits / 8),
            trained_parameters=trainable,
            optimizer=config.optimization.optimizer,
            with_average=config.optimization.ema > 0,
            unet=UNetShape.from_config(unet.config),
            batch_size=config.optimization.batch_size,
            width_px=width_px,
            height_px=height_px,
            precision=config.optimization.precision,
            with_convolutions=config.adapter.layers == "all+conv",
            checkpointing=config.optimization.gradient_checkpointing,
        )


def largest_size(images: RunImages) -> tuple[int, int]:
    """Width and height in pixels of the run's largest bucket."""
    buckets = [item.placement.bucket for item in images.placed]
    largest = max(buckets, key=lambda bucket: bucket.width_px * bucket.height_px)
    return largest.width_px, largest.height_px


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected peak of the training steps, by what takes it, in bytes."""

    frozen_bytes: int
    adapter_bytes: int
    """Trained weights, their gradients and their moving average, all fp32."""
    optimizer_bytes: int
    activation_bytes: int
    overhead_bytes: int
    """The libraries themselves, and passing buffers."""

    @property
    def total_gib(self) -> float:
        """All parts together, in GiB."""
        parts = (
            self.frozen_bytes,
            self.adapter_bytes,
            self.optimizer_bytes,
            self.activation_bytes,
            self.overhead_bytes,
        )
        return sum(parts) / GIB


def estimate(plan: MemoryPlan) -> MemoryEstimate:
    """About how much memory the training steps will take: an estimate, to be trusted within a quarter or so.

    frozen weights + 4 bytes for each trained value, its gradient and its average + optimizer state + activations
    (see `activation_bytes`) + a tenth of all that + 0.6 GiB for the libraries.
    Not in it: loading the model, encoding images and captions beforehand (VAE), previews, a live text encoder's
    activations, attention without a fused kernel (which also keeps heads x pixels^2 values).
    """
    adapter = plan.trained_parameters * (12 if plan.with_average else 8)
    state = int(plan.trained_parameters * _STATE_BYTES.get(plan.optimizer, _OTHER_STATE_BYTES))
    activations = activation_bytes(plan)
    workspace = int(_WORKSPACE_SHARE * (plan.frozen_bytes + adapter + state + activations))
    return MemoryEstimate(plan.frozen_bytes, adapter, state, activations, workspace + _RUNTIME_BYTES)


def activation_bytes(plan: MemoryPlan) -> int:
    """About how many bytes a forward pass keeps for the backward pass.

    Layers are counted with their size, pixels x channels, and multiplied by how many such tensors each kind keeps.
    With checkpointing a layer keeps little more than its input, and the largest one is computed once more in full.
    """
    unet, residual, attention, largest = plan.unet, 0, 0, 0
    kept_residual, kept_attention = _kept_values(plan, plan.checkpointing)
    full_residual, full_attention = _kept_values(plan, checkpointing=False)
    for level, channels in enumerate(unet.channels):
        size = channels * _latent_edge(plan.width_px, level) * _latent_edge(plan.height_px, level)
        layers = 2 * unet.layers[level] + 1
        residual += size * layers
        attention += size * layers * unet.transformer_blocks[level]
        largest = max(largest, size * (full_attention if unet.transformer_blocks[level] else full_residual))
    residual += 2 * size  # the middle block has two residual layers of the last level's size
    attention += unet.middle_transformer_blocks * size
    values = kept_residual * residual + kept_attention * attention + (largest if plan.checkpointing else 0)
    return plan.batch_size * values * (4 if plan.precision == "fp32" else 2)


def peak_gib(device: torch.device) -> float:
    """Highest memory use so far in GiB: of the card on CUDA, otherwise of this process; 0 where it can't be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return _process_peak_bytes() / GIB


@dataclass(frozen=True)
class DiskPlan:
    """What a run's folder will hold at most, in bytes."""

    adapter_bytes: int
    """The adapter file, and that of each checkpoint."""
    checkpoint_bytes: int
    kept_checkpoints: int

    @classmethod
    def of(cls, config: TrainConfig, trained_parameters: int, total_steps: int, steps_per_epoch: float) -> DiskPlan:
        """From the settings, the number of trained values and the run's length."""
        optimization = config.optimization
        # A checkpoint holds the weights that are trained and, with ema, their average, both in fp32.
        weights = 8 if optimization.ema else 4
        adapter = trained_parameters * DTYPES[config.outputs.precision].itemsize
        state = trained_parameters * (weights + _STATE_BYTES.get(optimization.optimizer, _OTHER_STATE_BYTES))
        return cls(adapter, adapter + int(state), _kept_checkpoints(config, total_steps, steps_per_epoch))

    @property
    def total_bytes(self) -> int:
        """The finished file, the checkpoints that are kept, and the one that is written before an old one goes."""
        return self.adapter_bytes + (self.kept_checkpoints + 1) * self.checkpoint_bytes

    def problem(self, folder: Path, cache_bytes: int = 0, cache_folder: Path | None = None) -> str | None:
        """Why the disks of the run's folder and of the cache are too small for it, with what to do; None when not."""
        free = disk.free_bytes(folder)
        if self.total_bytes <= free:
            if cache_folder is None or cache_bytes <= disk.free_bytes(cache_folder):
                return None
            free = disk.free_bytes(cache_folder)
            return (
                f"images.cache_folder: encoded images take up to {cache_bytes / MIB:,.0f} MiB, but the disk of "
                f"{cache_folder} has {free / MIB:,.0f} MiB free. Make room (sdlora cache prune --all), choose another "
                "folder or set images.cache=false"
            )
        return (
            f"outputs.folder: the run's folder takes up to {self.total_bytes / MIB:,.0f} MiB, of which a checkpoint "
            f"takes {self.checkpoint_bytes / MIB:,.0f}, but the disk of {folder} has {free / MIB:,.0f} MiB free. Make "
            "room, choose a folder on another disk, or keep fewer (outputs.keep_checkpoints)"
        )


def _kept_checkpoints(config: TrainConfig, total_steps: int, steps_per_epoch: float) -> int:
    """Those that stay at most: the newest, the best, and those kept for good; never more than are made."""
    outputs, validation = config.outputs, config.validation

    def made(every: int | str) -> int:
        steps = length(every, steps_per_epoch)
        return int(total_steps / steps) if steps else 0

    best = int(validation.folder is not None or validation.fraction > 0)
    kept = outputs.keep_checkpoints + best + made(outputs.keep_every)
    # `auto` goes by the clock as well, so there may be one at every step.
    return min(kept, total_steps if outputs.checkpoint_every == "auto" else made(outputs.checkpoint_every) + 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no more memory to give."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    # PyTorch's allocator for the CPU has no error of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def release(device: torch.device) -> None:
    """Give back what no tensor uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _kept_values(plan: MemoryPlan, checkpointing: bool) -> tuple[int, int]:
    """Tensors kept of each residual layer and of each transformer block."""
    without, with_convolutions, attention = (_KEPT_CHECKPOINTED if checkpointing else _KEPT)[plan.precision]
    return (with_convolutions if plan.with_convolutions else without), attention


def _latent_edge(edge_px: int, level: int) -> int:
    return math.ceil(edge_px / (LATENT_FACTOR << level))


def _per_level(value: int | tuple[int, ...] | list[int], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def _process_peak_bytes() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    status = Path("/proc/self/status")
    if status.exists():
        # Linux's getrusage also counts what the parent process held when it started this one.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
