"""sd-scripts' learning rates by block of the UNet in our terms: twelve factors down, one in the middle, twelve up.

The first factor down is that of the UNet's first convolution, which has no LoRA there (its `get_block_index` counts
from 1 on the way down), so each transformer, resnet and sampler has the factor after its own place; up it has its own.
Facts from its documentation of network_args; SD 1.x and 2.x only, since SDXL's blocks are counted otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sdlora.config.optimization import OWN_RATE
from sdlora.imports.translation import Translation, number, same

NAMES = {"down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"}
RANKS = {"block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"}
_BLOCKS = 12
_SHAPES: dict[str, Callable[[float], float]] = {
    "sine": lambda share: math.sin(share * math.pi / 2),
    "cosine": lambda share: math.sin((1 - share) * math.pi / 2),
    "linear": lambda share: share,
    "reverse_linear": lambda share: 1 - share,
    "zeros": lambda share: 0.0,
}


def block_weights(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """Enter factors on the learning rate by block; returns the names dealt with. The layers have to be entered before.

    What can't be held is noted: ranks by block, whose alphas stay there while ours go with the rank.
    """
    for name in sorted(RANKS):
        if same(settings.get(name)) and str(settings[name]) != "0":
            result.lose(name, settings[name], "adapter.block_ranks holds ranks by block, at one ratio of alpha to rank")
    given = {name: settings[name] for name in sorted(NAMES) if same(settings.get(name)) not in (None, False)}
    if not given.keys() - {"block_lr_zero_threshold"}:
        return NAMES | RANKS
    if result.values.get("base_model.family") == "sdxl":
        for name, value in given.items():
            result.lose(name, value, "for SDXL set optimization.block_learning_rates")
        return NAMES | RANKS
    try:
        limit = number(given.get("block_lr_zero_threshold")) or 0.0
        down, up = (_twelve(given.get(f"{side}_lr_weight")) for side in ("down", "up"))
        middle = number(given.get("mid_lr_weight"))
    except ValueError:
        for name, value in given.items():
            result.lose(name, value, "not understood; set optimization.block_learning_rates")
        return NAMES | RANKS
    with_convolutions = result.values.get("adapter.layers") == "all+conv"
    factors = {
        **_by_pattern("down_blocks", down[1:], with_convolutions),
        "mid_block": 1.0 if middle is None else middle,
        **_by_pattern("up_blocks", up, with_convolutions),
    }
    rates = {pattern: factor if factor > limit else 0.0 for pattern, factor in factors.items() if factor != 1}
    optimizer = result.values.get("optimization.optimizer")
    if optimizer in OWN_RATE and any(rates.values()):
        for name, value in given.items():
            result.lose(name, value, f"{optimizer} takes one learning rate for all blocks")
    else:
        result.put("optimization.block_learning_rates", rates or None)
    return NAMES | RANKS


def _twelve(value: Any) -> list[float]:
    """Twelve factors from a list, a text with commas, or the name of a shape with or without +FLOOR."""
    if value is None:
        return [1.0] * _BLOCKS
    shape, _, floor = str(value).strip().lower().partition("+")
    if shape in _SHAPES:
        return [round(_SHAPES[shape](i / (_BLOCKS - 1)) + float(floor or 0), 6) for i in range(_BLOCKS)]
    parts = value if isinstance(value, list) else str(value).split(",")
    factors = [1.0 if (factor := number(part)) is None else factor for part in parts]
    if len(factors) > _BLOCKS or any(factor < 0 for factor in factors):
        raise ValueError("not twelve factors")
    return factors + [1.0] * (_BLOCKS - len(factors))


def _by_pattern(side: str, factors: list[float], with_convolutions: bool) -> dict[str, float]:
    """Three positions a block: transformers and resnets by number, and the sampler, which is the last of a block."""
    found: dict[str, float] = {}
    is_down = side == "down_blocks"
    for position, factor in enumerate(factors):
        block, index = divmod(position, 3)
        has_attention = block < 3 and index < 2 if is_down else block > 0
        if has_attention:
            found[f"{side}.{block}.attentions.{index}"] = factor
        if with_convolutions and (index < 2 or not is_down):
            found[f"{side}.{block}.resnets.{index}"] = factor
        if with_convolutions and index == 2 and block < 3:
            found[f"{side}.{block}.{'down' if is_down else 'up'}samplers.0"] = factor
    return found
