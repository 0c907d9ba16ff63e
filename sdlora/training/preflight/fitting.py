"""How much memory a run takes, by part, and the cheapest settings with which it fits a card: `sdlora estimate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from diffusers import UNet2DConditionModel

from sdlora.config import files
from sdlora.config.base_model import FamilyName
from sdlora.config.train import TrainConfig
from sdlora.constants import GIB
from sdlora.errors import ConfigError
from sdlora.training.inputs.images import find_images
from sdlora.training.preflight.counting import Layouts, trained_values
from sdlora.training.preflight.memory import MemoryEstimate, MemoryPlan, estimate, largest_size
from sdlora.training.preflight.speed import choose_speed


@dataclass(frozen=True)
class Switch:
    """Settings that save memory, and what they cost."""

    settings: tuple[str, ...]
    costs: str
    weight: int
    """How dear that is: of two sets that fit, the one with the smaller sum is proposed."""

    def is_new_to(self, config: TrainConfig) -> bool:
        """Whether it would change anything."""
        return _with(config, self.settings) != config


@dataclass(frozen=True)
class Fit:
    """A set of switches with which a run fits, and what it then takes."""

    switches: tuple[Switch, ...]
    memory: MemoryEstimate

    @property
    def settings(self) -> list[str]:
        """All of them, as `--set` takes them."""
        return [setting for switch in self.switches for setting in switch.settings]


@dataclass(frozen=True)
class MemoryNeeds:
    """A run's memory, and how it gets into less."""

    config: TrainConfig
    width_px: int
    height_px: int
    """The size of the largest bucket."""
    unet: UNet2DConditionModel
    trained_values: int
    device: str
    """The kind of device that trains: `cuda`, `cpu` ..."""

    @classmethod
    def of(cls, config: TrainConfig, device: str, family: FamilyName | None = None) -> MemoryNeeds:
        """Of these settings; without an image folder for square images of the largest resolution.

        family: counts a model of this family in place of `base_model.model`, which need not be there then.
        Raises ModelError for a base model that can't be found, DataError for images that can't be used.
        """
        if config.images.sources:
            width_px, height_px = largest_size(find_images(config))
        else:
            width_px = height_px = max(config.images.resolutions)
        layouts = Layouts.of(config, family)
        return cls(config, width_px, height_px, layouts.unet, trained_values(config, layouts), device)

    def memory(self, settings: tuple[str, ...] = ()) -> MemoryEstimate:
        """What the training steps take, with some settings changed."""
        config = _with(self.config, settings)
        plan = MemoryPlan.for_size(config, self.width_px, self.height_px, self.unet, self.trained_values)
        speed = choose_speed(config.optimization, config.base_model, self.unet, plan, torch.device(self.device))
        return estimate(speed.added_to(plan))

    def fit(self, limit_gib: float) -> Fit | None:
        """The cheapest switches with which the steps fit, none where they do anyway; None where none are enough."""
        offered = [switch for switch in self._switches() if switch.is_new_to(self.config)]
        sets = [chosen for number in range(len(offered) + 1) for chosen in combinations(offered, number)]
        for chosen in sorted(sets, key=lambda each: sum(switch.weight for switch in each)):
            found = Fit(chosen, self.memory(tuple(each for switch in chosen for each in switch.settings)))
            if _is_possible(chosen) and found.memory.total_gib <= limit_gib:
                return found
        return None

    def _switches(self) -> Iterator[Switch]:
        optimization = self.config.optimization
        if self.device == "cpu" and optimization.speed != "plain":
            yield Switch(("optimization.speed=lean",), "slower steps on a processor", 1)
        if optimization.optimizer == "adamw":
            yield Switch(("optimization.optimizer=adamw8bit",), "rounded moments; needs bitsandbytes", 2)
        yield Switch(("optimization.gradient_checkpointing=true",), "steps about a third slower, same result", 3)
        if optimization.batch_size > 1:
            times = optimization.batch_size * optimization.accumulation
            settings = ("optimization.batch_size=1", f"optimization.accumulation={times}")
            yield Switch(settings, "the same images an update, one after the other: slower", 4)
        if optimization.precision == "fp32":
            yield Switch(("optimization.precision=bf16",), "rounded arithmetic; a card of 2020 or newer", 4)
        if self.config.base_model.quantization == "none":
            yield Switch(("base_model.quantization=int8",), "a rounded base, slower steps", 8)
            yield Switch(("base_model.quantization=nf4",), "a coarsely rounded base, slower steps; bitsandbytes", 16)


def parse_memory(text: str) -> float:
    """`8`, `8GB`, `7.5 GiB` or `8000MB` in GiB. Raises ConfigError.

    GB counts as GiB: a card that is sold with 8 GB has 8 GiB.
    """
    number = text.strip().lower().replace("gib", "").replace("gb", "").replace("g", "")
    in_mib = number.endswith(("mib", "mb", "m"))
    number = number.replace("mib", "").replace("mb", "").replace("m", "")
    try:
        value = float(number) / (1024 if in_mib else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 100_000:
        raise ConfigError("--memory", [f"'{text}' is no amount of memory: write it as 8GB or 8000MB"])
    return value


def parts(memory: MemoryEstimate) -> list[tuple[str, float]]:
    """What takes the memory, in words and GiB."""
    return [
        ("frozen weights of the UNet", memory.frozen_bytes / GIB),
        ("trained weights, their gradients and average", memory.adapter_bytes / GIB),
        ("the optimizer's state", memory.optimizer_bytes / GIB),
        ("kept for the backward pass", memory.activation_bytes / GIB),
        ("libraries and passing buffers", memory.overhead_bytes / GIB),
    ]


def _with(config: TrainConfig, settings: tuple[str, ...]) -> TrainConfig:
    values = config.model_dump(mode="json", exclude_defaults=True)
    files.override(values, settings, "the estimate")
    return files.validate(values, "the estimate")


def _is_possible(switches: tuple[Switch, ...]) -> bool:
    """Whether no two of them set the same."""
    names = [setting.partition("=")[0] for switch in switches for setting in switch.settings]
    return len(names) == len(set(names))
