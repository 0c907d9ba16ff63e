"""OneTrainer's optimizers and their options in our terms. Names and defaults as in its window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdlora.imports.optimizers import optimizer, put_options
from sdlora.imports.translation import Translation, legible, number

_OPTIONS: dict[str, tuple[str, ...]] = {
    "adamw": ("eps", "amsgrad"),
    "adamw8bit": ("eps",),
    "torch.optim.Adam": ("eps", "amsgrad"),
    "torch.optim.SGD": ("momentum", "dampening", "nesterov"),
    "adafactor": ("beta1", "clip_threshold", "decay_rate", "scale_parameter", "relative_step", "warmup_init"),
    "prodigy": (
        "beta3",
        "eps",
        "d0",
        "d_coef",
        "growth_rate",
        "decouple",
        "use_bias_correction",
        "safeguard_warmup",
        "slice_p",
    ),
    "prodigy_schedule_free": (
        "d0",
        "d_coef",
        "prodigy_steps",
        "use_bias_correction",
        "use_stableadamw",
        "use_speed",
        "weight_decay_by_lr",
        "d_limiter",
        "split_groups",
        "factored",
    ),
    "dadapt_adam": ("eps", "d0", "decouple", "use_bias_correction"),
    "schedule_free_adamw": ("eps", "r", "weight_lr_power"),
}
"""An optimizer's options that are called the same in its class."""
_NUMBERS_OF_OPTIMIZERS = (
    "weight_decay", "beta1", "beta2", "beta3", "eps", "eps2", "momentum", "dampening", "clip_threshold", "decay_rate",
    "d0", "d_coef", "slice_p", "prodigy_steps", "r", "weight_lr_power",
)  # fmt: skip
_OF_SPEED = {
    "optimizer", "stochastic_rounding", "fused_back_pass", "foreach", "fused", "capturable", "differentiable",
    "block_wise", "is_paged", "fsdp_in_use", "bias_correction", "adam_w_mode", "correct_bias", "use_triton",
    "decoupled_decay", "split_groups", "factored", "weight_decay_by_lr", "d_limiter", "compiled_optimizer",
}  # fmt: skip
_USUAL_OPTIONS: dict[str, Any] = {
    "min_8bit_size": 4096, "percentile_clipping": 100, "optim_bits": 32, "growth_rate": math.inf, "log_every": 0,
}  # fmt: skip
"""Options as they are everywhere here."""
_BETAS = {"came": (0.9, 0.999, 0.9999), "adan": (0.98, 0.92, 0.99), "lion": (0.9, 0.99)}
"""Those of an optimizer that takes others than Adam's, for what a file leaves out."""
_PAIRS = {"adafactor": (1e-30, 1e-3), "came": (1e-30, 1e-16)}
"""Optimizers with two eps, which they take as a pair, and those of their classes."""


def put_optimizer(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """The optimizer with its options; returns the names of the settings that were read."""
    own = settings.get("optimizer", "ADAMW")
    options = own if isinstance(own, Mapping) else {"optimizer": own, "weight_decay": settings.get("weight_decay")}
    options = legible(options, result, _NUMBERS_OF_OPTIMIZERS, (), "optimizer.")
    result.take(options, {"optimizer": ("optimization.optimizer", _optimizer_named)}, "optimizer.")
    result.put("optimization.weight_decay", number(options.get("weight_decay")))
    kind = str(result.values.get("optimization.optimizer"))
    usual = {name for name, value in _USUAL_OPTIONS.items() if options.get(name) == value}
    taken = {
        name: options[name] for name in _OPTIONS.get(kind, ()) if options.get(name) is not None and name not in usual
    }
    own_betas = _BETAS.get(kind, (0.9, 0.999))
    given = [options.get(f"beta{index}") for index in range(1, len(own_betas) + 1)]
    known = {*taken, *usual, *_OF_SPEED, "__version", "weight_decay"}
    if kind not in ("adafactor", "muon", "torch.optim.SGD") and any(beta is not None for beta in given):
        taken["betas"] = [own if beta is None else beta for beta, own in zip(given, own_betas, strict=True)]
        known |= {f"beta{index}" for index in range(1, len(own_betas) + 1)}
    if kind in _PAIRS and any(options.get(name) is not None for name in ("eps", "eps2")):
        first, second = _PAIRS[kind]
        taken["eps"] = [number(options.get("eps")) or first, number(options.get("eps2")) or second]
        known |= {"eps", "eps2"}
    is_adafactor = kind == "adafactor"
    put_options(result, taken, {"relative_step": False, "scale_parameter": False} if is_adafactor else None)
    result.lose_rest(options, known, "optimizer.")
    if result.values.get("optimization.schedule") != "cosine_with_restarts":
        result.values.pop("optimization.schedule_cycles", None)
    return {"optimizer", "weight_decay", "scheduler_params"}


def _optimizer_named(value: Any) -> str | None:
    return optimizer(str(value or "").replace("_", ""))
