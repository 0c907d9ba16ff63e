"""Which learning rate each trained weight gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sdlora.adapters.files.kohya import Part
from sdlora.adapters.live.attach import Weight
from sdlora.adapters.live.layers import block_of, matches_block, overruled
from sdlora.config.optimization import OptimizationConfig
from sdlora.errors import ConfigError

_MAGNITUDE = ".magnitude"
NEW_TOKENS: Literal["new_tokens"] = "new_tokens"
GroupPart = Part | Literal["new_tokens"]


@dataclass(frozen=True)
class ParameterGroup:
    """Weights that share a learning rate and a weight decay."""

    name: str
    """For logs: "unet", "unet B" (LoRA+), "unet down_blocks.0", "text_encoder", "unet magnitude" (DoRA)."""
    parameters: list[nn.Parameter]
    learning_rate: float
    """Before the schedule's factor."""
    weight_decay: float
    part: GroupPart = "unet"
    """The model part it belongs to, or new_tokens; none has weights of two."""


def check_blocks(config: OptimizationConfig, layers: Sequence[tuple[Part, str]]) -> None:
    """Raise ConfigError for a block pattern that matches none of the trained layers (part and path)."""
    blocks = ", ".join(dict.fromkeys(block_of(part, path) for part, path in layers))
    problems = [
        f"block_learning_rates: '{pattern}' matches no trained layer, trained blocks are: {blocks}"
        for pattern in config.block_learning_rates
        if not any(matches_block(pattern, part, path) for part, path in layers)
    ]
    matching = [[one for one in config.block_learning_rates if matches_block(one, *layer)] for layer in layers]
    matched, counting = {one for own in matching for one in own}, {own[-1] for own in matching if own}
    problems += [
        overruled("block_learning_rates", one)
        for one in config.block_learning_rates
        if one in matched and one not in counting
    ]
    if problems:
        raise ConfigError("optimization", problems)


def parameter_groups(weights: Iterable[Weight], config: OptimizationConfig) -> list[ParameterGroup]:
    """The trained weights in as few groups as their learning rates allow, in the order they first occur.

    A weight's rate is its part's, times the factor of the last block pattern that matches it, times lora_plus_ratio for
    LoRA's B. Weights whose rate is 0 are in no group and stay as they are. DoRA's magnitudes get no weight decay,
    since they start at the norms of the base's weights and not at 0; nor do new tokens, which start at those of words.
    Raises ConfigError for a block pattern that matches nothing, and when nothing is left to train.
    """
    weights = list(weights)
    check_blocks(config, [(weight.part, weight.path) for weight in weights if not weight.is_token])
    groups: dict[str, ParameterGroup] = {}
    for weight in weights:
        part: GroupPart = NEW_TOKENS if weight.is_token else weight.part
        name: list[str] = [part]
        learning_rate = config.learning_rates[part]
        patterns = () if weight.is_token else config.block_learning_rates
        matching = [p for p in patterns if matches_block(p, weight.part, weight.path)]
        factor = config.block_learning_rates[matching[-1]] if matching else 1.0
        if factor != 1.0:
            name.append(matching[-1].removeprefix(f"{weight.part}."))
            learning_rate *= factor
        if weight.is_B and config.lora_plus_ratio != 1.0:
            name.append("B")
            learning_rate *= config.lora_plus_ratio
        weight_decay = config.weight_decay
        if weight.name.endswith(_MAGNITUDE):
            name.append("magnitude")
            weight_decay = 0.0  # it would pull the norms of the base's own weights towards 0
        elif weight.is_token:
            weight_decay = 0.0
        if learning_rate > 0:
            group = ParameterGroup(" ".join(name), [], learning_rate, weight_decay, part)
            # Weights at a rate of 0 stay out: in a group they would
            # cost optimizer state and still take part in clipping.
            groups.setdefault(group.name, group).parameters.append(weight.parameter)
    if not groups:
        raise ConfigError("optimization", ["every learning rate is 0, nothing remains to train"])
    return list(groups.values())


def trained_parameters(groups: Iterable[ParameterGroup]) -> list[nn.Parameter]:
    """All weights of all groups, in one list."""
    return [parameter for group in groups for parameter in group.parameters]
