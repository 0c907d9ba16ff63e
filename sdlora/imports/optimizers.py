"""Optimizers of other trainers in our terms: their names, and what is left at their own defaults.

Defaults as in the classes that those trainers call (prodigyopt, lion-pytorch, dadaptation, schedulefree, transformers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdlora.config.optimization import OPTIMIZERS, OWN_RATE
from sdlora.imports.translation import Translation, one_of

NAMES = {
    "adamweightdecay": "adamw",
    "adamw": "adamw",
    "adam": "torch.optim.Adam",
    "adamw8bit": "adamw8bit",
    "adam8bit": "bitsandbytes.optim.Adam8bit",
    "pagedadamw8bit": "paged_adamw8bit",
    "lion": "lion",
    "adafactor": "adafactor",
    "prodigy": "prodigy",
    "prodigyplusschedulefree": "prodigy_schedule_free",
    "dadaptation": "dadapt_adam",
    "dadaptadam": "dadapt_adam",
    "dadaptadampreprint": "dadapt_adam",
    "came": "came",
    "adan": "adan",
    "adopt": "adopt",
    "soap": "soap",
    "muon": "muon",
    "ademamix": "ademamix",
    "stableadamw": "stable_adamw",
    "adamwschedulefree": "schedule_free_adamw",
    "schedulefreeadamw": "schedule_free_adamw",
    "schedule_free_adamw": "schedule_free_adamw",
    "schedulefreesgd": "schedulefree.SGDScheduleFree",
    "pagedadamw": "bitsandbytes.optim.PagedAdamW",
    "pagedadamw32bit": "bitsandbytes.optim.PagedAdamW32bit",
    "ademamix8bit": "bitsandbytes.optim.AdEMAMix8bit",
    "pagedademamix8bit": "bitsandbytes.optim.PagedAdEMAMix8bit",
    "lion8bit": "bitsandbytes.optim.Lion8bit",
    "pagedlion8bit": "bitsandbytes.optim.PagedLion8bit",
    "sgd": "torch.optim.SGD",
    "sgdnesterov": "torch.optim.SGD",
    "sgdnesterov8bit": "bitsandbytes.optim.SGD8bit",
    "adagrad": "torch.optim.Adagrad",
    "dadaptlion": "pytorch_optimizer.DAdaptLion",
    "dadaptsgd": "pytorch_optimizer.DAdaptSGD",
    "dadaptadagrad": "pytorch_optimizer.DAdaptAdaGrad",
    "dadaptadan": "pytorch_optimizer.DAdaptAdan",
    "dadaptadanip": "pytorch_optimizer.DAdaptAdan",
    "radamschedulefree": "schedulefree.RAdamScheduleFree",
    "sgdschedulefree": "schedulefree.SGDScheduleFree",
}
"""By the name in lower case; a path is a class that is named as it stands."""
_NAMED = one_of(**NAMES)
_DECAYED = ("adamw", "ademamix", "stable_adamw", "stableadamw", "soap", "paged_adamw")
"""Beginnings of classes whose own weight decay is 0.01, like ours; that of the others is 0."""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "prodigy": {"use_bias_correction": False, "safeguard_warmup": False},
    "adafactor": {"relative_step": True, "scale_parameter": True},
    "dadapt_adam": {"weight_decouple": False},
    "adan": {"weight_decouple": False},
    "ademamix": {"weight_decouple": False},
    "adopt": {"weight_decouple": False},
}
"""Options that ours sets otherwise than the class."""
_RENAMED = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}
"""dadaptation's options as pytorch_optimizer calls them."""
_ONLY_THERE = {"log_every", "no_prox", "fsdp_in_use", "foreach", "fused"}
"""Options about reports and speed."""
_RELATIVE_STEP_RATE = 1e-3
_USUAL_RATE = 1e-4


def optimizer(value: Any) -> str | None:
    """Ours by another trainer's name, or the class itself by its dotted path. Raises ValueError for unknown names."""
    path, _, name = str(value or "").rpartition(".")
    known: str | None = NAMES.get(name.lower())
    if not path:
        found: str | None = _NAMED(value)
        return found
    is_other_package = known is not None and "." in known and known.partition(".")[0] != path.partition(".")[0]
    return str(value) if known is None or is_other_package else known


def put_options(result: Translation, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Enter the optimizer's options, and where the file is silent the defaults there, which are not ours.

    defaults: options that the trainer gives by itself, before those of the class. The optimizer and the learning rates
    have to be entered before.
    """
    kind = str(result.values.get("optimization.optimizer", "adamw"))
    given = dict(options)
    weight_decay = given.pop("weight_decay", None)
    result.put("optimization.weight_decay", weight_decay)
    is_decayed = kind.rpartition(".")[2].lower().removeprefix("paged").startswith(_DECAYED) or kind == "paged_adamw8bit"
    if "optimization.weight_decay" not in result.values and not is_decayed:
        result.put("optimization.weight_decay", 0.0)
    if kind.startswith(("dadapt", "pytorch_optimizer.DAdapt")):
        given = {_RENAMED.get(name, name): value for name, value in given.items() if name not in _ONLY_THERE}
    for name, value in {**_DEFAULTS.get(kind, {}), **(defaults or {})}.items():
        given.setdefault(name, value)
    if kind == "adafactor" and given.get("relative_step"):
        _find_own_rate(result)
    result.put("optimization.optimizer_options", given or None)


def _find_own_rate(result: Translation) -> None:
    rate = result.values.get("optimization.learning_rate")
    result.change("learning_rate", rate, "Adafactor with relative_step finds its own")
    result.put("optimization.learning_rate", _RELATIVE_STEP_RATE)
    for name in ("optimization.text_encoder_learning_rate", "optimization.text_encoder_2_learning_rate"):
        if name in result.values:
            result.put(name, _RELATIVE_STEP_RATE)


def settle(result: Translation) -> None:
    """Rates and options that don't go with the optimizer that ours trains with."""
    values = result.values
    kind, rate = values.get("optimization.optimizer"), values.get("optimization.learning_rate")
    if kind in OWN_RATE and rate and rate < 0.1:
        result.change("learning_rate", rate, f"{kind} finds its own and takes a factor, usually 1")
        values["optimization.learning_rate"] = 1.0
    if kind is None and values.pop("optimization.optimizer_options", None):
        result.lose("optimizer options", "", "they belong to an optimizer that is not here")
    if rate and rate > 0.1 and (kind is None or (kind in OPTIMIZERS and kind not in OWN_RATE)):
        result.change("learning_rate", rate, f"far too high for {kind or 'adamw'}: {_USUAL_RATE:g}")
        for name in ("learning_rate", "text_encoder_learning_rate", "text_encoder_2_learning_rate"):
            if values.get(f"optimization.{name}"):
                values[f"optimization.{name}"] = _USUAL_RATE
