"""Which `optimization.speed` a run takes, and why: what the dry run tells, and what the run does as it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch
from diffusers import UNet2DConditionModel

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.optimization import OptimizationConfig, Speed
from sdlora.constants import GIB
from sdlora.models.frozen.engine import calculates_in_bf16, is_wide, packed_bytes
from sdlora.training.preflight.memory import MemoryPlan, estimate

_MOST_MEMORY = 0.6
"""Share of the machine's memory that a run may take with packed weights; of all of it and not of what is free at the
moment, so that a resumed run chooses as the run did."""
_HOW = {
    "plain": "torch's own layers",
    "fast": "frozen weights reordered once, for both directions",
    "lean": "faster attention and small convolutions, no second copy of the weights",
}


@dataclass(frozen=True)
class ChosenSpeed:
    """The speed that is taken, the reason if it isn't what the setting names, and the memory it costs."""

    speed: Speed
    setting: str
    reason: str
    extra_bytes: int = 0

    @property
    def text(self) -> str:
        """One line for a person."""
        more = f", {self.extra_bytes / GIB:.1f} GiB more" if self.extra_bytes else ""
        why = f" (optimization.speed={self.setting}: {self.reason})" if self.reason else ""
        return f"{self.speed}: {_HOW[self.speed]}{more}{why}"

    @property
    def is_without_effect(self) -> bool:
        """Whether a speed was asked for by name that this run can't take."""
        return self.setting not in ("auto", self.speed)

    def added_to(self, plan: MemoryPlan) -> MemoryPlan:
        """The plan with the second copy of the weights."""
        return replace(plan, frozen_bytes=plan.frozen_bytes + self.extra_bytes)


def choose_speed(
    optimization: OptimizationConfig,
    base_model: BaseModelConfig,
    unet: UNet2DConditionModel,
    plan: MemoryPlan,
    device: torch.device | None = None,
) -> ChosenSpeed:
    """What the settings, the UNet (its layout is enough) and the machine come to.

    plan: the run's memory with torch's own layers. device: where the run trains, if that is known by now.
    """
    setting = optimization.speed
    if reason := _obstacle(optimization, base_model, device):
        return ChosenSpeed("plain", setting, "" if setting == "plain" else reason)
    fast = ChosenSpeed("fast", setting, "", packed_bytes(unet))
    if setting == "auto":
        if not is_wide(unet):
            return ChosenSpeed("plain", setting, "so narrow a UNet gains nothing")
        needed_gib, total_gib = estimate(fast.added_to(plan)).total_gib, psutil.virtual_memory().total / GIB
        if needed_gib > _MOST_MEMORY * total_gib:
            reason = f"fast takes about {needed_gib:.1f} GiB, and this machine has {total_gib:.1f}"
            return ChosenSpeed("lean", setting, reason)
        return replace(fast, reason="bf16 on a processor, and memory enough")
    if setting == "plain":
        return ChosenSpeed("plain", setting, "")
    chosen = fast if setting == "fast" else ChosenSpeed(setting, setting, "")
    return chosen if is_wide(unet) else replace(chosen, reason="taken as asked, but so narrow a UNet gains nothing")


def _obstacle(optimization: OptimizationConfig, base_model: BaseModelConfig, device: torch.device | None) -> str | None:
    """Why torch's own layers are the only ones for this run."""
    kind = device.type if device is not None else _device_type(optimization.device)
    if kind != "cpu":
        return f"only a processor gains from it, and this run trains on {kind}"
    if optimization.precision != "bf16":
        return f"for bf16 only, and optimization.precision is {optimization.precision}"
    if base_model.quantization != "none":
        return f"base_model.quantization={base_model.quantization} has its own layers"
    if not calculates_in_bf16():
        return "this processor, or this build of torch, doesn't calculate in bf16"
    return None


def _device_type(setting: str) -> str:
    """The kind of device that `optimization.device` comes to, as accelerate chooses it."""
    if setting != "auto":
        return setting.partition(":")[0]
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
