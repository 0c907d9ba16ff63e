"""The optimizer a configuration names, ready to step.

Every optimizer here keeps its whole state in `state_dict()`, so that a run that saves and loads it goes on exactly.
The learning rate of a step is set from outside by `set_learning_rates`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sdlora.config.optimization import OptimizationConfig
from sdlora.errors import ConfigError, MissingPackageError
from sdlora.training.optimization.parameter_groups import NEW_TOKENS, ParameterGroup

_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
_SETTINGS = {"lr": "learning_rate", "weight_decay": "weight_decay", "params": "adapter"}

# bitsandbytes leaves tensors below 4096 values in fp32, which for a small rank is most of an adapter. It quantises in
# blocks of 256, so that much is enough for full precision of the scales.
_MIN_8BIT_SIZE = 256


@dataclass(frozen=True)
class _Kind:
    """How a named optimizer is made: its class, the pip extra that brings it, and our defaults for its options."""

    path: str
    extra: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)


_KINDS = {
    "adamw": _Kind("torch.optim.AdamW"),
    "adamw8bit": _Kind("bitsandbytes.optim.AdamW8bit", "8bit", {"min_8bit_size": _MIN_8BIT_SIZE}),
    "paged_adamw8bit": _Kind("bitsandbytes.optim.PagedAdamW8bit", "8bit", {"min_8bit_size": _MIN_8BIT_SIZE}),
    "lion": _Kind("lion_pytorch.Lion", "lion"),
    # torch's own Adafactor scales every step by the weight's size, which is 0 for LoRA's B: with a fixed rate only
    # the one in transformers trains it.
    "adafactor": _Kind(
        "transformers.optimization.Adafactor",
        defaults={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "prodigy": _Kind(
        # safeguard_warmup keeps the small rates of a warm-up out of Prodigy's estimate of its own step.
        "prodigyopt.Prodigy",
        "prodigy",
        {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True},
    ),
    "schedule_free_adamw": _Kind("schedulefree.AdamWScheduleFree", "schedule-free"),
    "prodigy_schedule_free": _Kind("prodigyplus.ProdigyPlusScheduleFree", "optimizers", {"use_speed": False}),
    # Decoupled as in AdamW, which is what optimization.weight_decay
    # means; this package's default is L2 in the gradient.
    "adan": _Kind("pytorch_optimizer.Adan", "optimizers", {"weight_decouple": True}),
    "ademamix": _Kind("pytorch_optimizer.AdEMAMix", "optimizers", {"weight_decouple": True}),
    "adopt": _Kind("pytorch_optimizer.ADOPT", "optimizers", {"weight_decouple": True}),
    "came": _Kind("pytorch_optimizer.CAME", "optimizers"),
    "dadapt_adam": _Kind("pytorch_optimizer.DAdaptAdam", "optimizers", {"weight_decouple": True}),
    "muon": _Kind("pytorch_optimizer.Muon", "optimizers"),
    "soap": _Kind("pytorch_optimizer.SOAP", "optimizers"),
    "stable_adamw": _Kind("pytorch_optimizer.StableAdamW", "optimizers"),
}
_CHOSEN = ("betas", "eps", "momentum", "nesterov", "amsgrad", "d_coef")
"""Options that are settings wherever they occur, given or not."""
_PACKAGES = {
    "lion_pytorch": "lion-pytorch",
    "pytorch_optimizer": "pytorch-optimizer",
    "prodigyplus": "prodigy-plus-schedule-free",
}


def build(groups: Sequence[ParameterGroup], config: OptimizationConfig, device: torch.device) -> Optimizer:
    """The optimizer over the given groups, in training mode.

    device: where the weights are. Raises MissingPackageError, or ConfigError when a dotted path can't be imported or
    names no optimizer, and when the optimizer rejects its options.
    """
    kind = _KINDS.get(config.optimizer, _Kind(config.optimizer))
    optimizer_class = _import_class(config.optimizer, kind)
    options = {**kind.defaults, **config.optimizer_options}
    if config.optimizer == "adamw" and device.type in _FUSED_DEVICES:
        # One kernel instead of a loop over hundreds of small tensors: a quarter of the time for a LoRA.
        options.setdefault("fused", True)
    options = {name: _as_python(value) for name, value in options.items()}
    problems = _option_problems(optimizer_class, options)
    if problems:
        raise ConfigError("optimization.optimizer_options", problems)
    torch_groups: list[dict[str, Any]] = [
        {"params": group.parameters, "lr": group.learning_rate, "weight_decay": group.weight_decay, "name": group.name}
        for group in groups
    ]
    if config.optimizer == "muon":
        # It makes updates orthogonal, which only a matrix can be; DoRA's magnitudes, which have a group of their own,
        # get AdamW. A convolution's B is [out, rank, 1, 1], a matrix all the same.
        for group in torch_groups:
            is_token = group["name"] == NEW_TOKENS  # a list of vectors, not a map that could be orthogonal
            group["use_muon"] = not is_token and all(parameter.ndim >= 2 for parameter in group["params"])
    if config.optimizer == "paged_adamw8bit" and device.type == "cpu":
        # `notes` says it once, in our words.
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some print remarks of their own
            # Adafactor's own steps and a rate of the person's exclude each other there.
            own_steps = config.optimizer == "adafactor" and options["relative_step"]
            optimizer: Optimizer = optimizer_class(
                torch_groups, lr=None if own_steps else groups[0].learning_rate, **options
            )
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        given = f"its options {config.optimizer_options}" if config.optimizer_options else "its settings"
        raise ConfigError("optimization", [f"optimizer {config.optimizer} rejects {given}: {error}"]) from error
    # A schedule-free optimizer begins in evaluation mode and refuses to step there.
    if _has_modes(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def check(config: OptimizationConfig) -> None:
    """Find everything `build` would refuse, before any model is loaded; raises what it raises."""
    device = torch.device("cpu")
    # One value is enough: classes and options are refused when the optimizer is made, not when it steps.
    group = ParameterGroup("check", [nn.Parameter(torch.zeros(1))], config.learning_rate, config.weight_decay)
    build([group], config, device)


def notes(groups: Sequence[ParameterGroup], config: OptimizationConfig, device: torch.device) -> list[str]:
    """What is worth telling about the choice on this device and these weights, one sentence each."""
    remarks = []
    if config.optimizer == "adafactor" and config.optimizer_options.get("relative_step"):
        remarks.append(
            "adafactor with relative_step finds its own learning rate: optimization.learning_rate, its schedule and "
            "warm-up have no effect"
        )
    if config.optimizer == "paged_adamw8bit" and device.type == "cpu":
        remarks.append("optimizer=paged_adamw8bit pages between card and host; on the CPU it is the same as adamw8bit")
    if config.optimizer in ("adamw8bit", "paged_adamw8bit"):
        limit = config.optimizer_options.get("min_8bit_size", _MIN_8BIT_SIZE)
        sizes = [parameter.numel() for group in groups for parameter in group.parameters]
        small = [size for size in sizes if size < limit]
        if small:
            remarks.append(
                f"{len(small)} of {len(sizes)} adapter tensors have fewer than {limit} values and keep 32-bit "
                f"optimizer state ({sum(small)} of {sum(sizes)} values)"
            )
    return remarks


def set_learning_rates(
    optimizer: Optimizer,
    groups: Sequence[ParameterGroup],
    factor: float,
    part_factors: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Set every group's rate for the next step to its base rate times `factor`; returns the rates by group name.

    part_factors: further factors by model part, such as 0 for a text encoder that is trained no more. For Prodigy the
    returned rate includes its own estimate, and for Adafactor with relative_step it is its own, as that is what moves
    the weights.
    """
    learning_rates = {}
    for torch_group, group in zip(optimizer.param_groups, groups, strict=True):
        torch_group["lr"] = group.learning_rate * factor * (part_factors or {}).get(group.part, 1.0)
        learning_rates[group.name] = torch_group["lr"] * torch_group.get("d", 1.0)
        if torch_group.get("relative_step"):
            learning_rates[group.name] = _relative_step_size(optimizer, torch_group)
    return learning_rates


def _relative_step_size(optimizer: Optimizer, torch_group: Mapping[str, Any]) -> float:
    """Adafactor's own rate for the next step, before the weights' size scales it (Shazeer & Stern 2018, alg. 5)."""
    step = 1 + max((int(optimizer.state[each].get("step", 0)) for each in torch_group["params"]), default=0)
    return float(min(1e-6 * step if torch_group["warmup_init"] else 1e-2, step**-0.5))


def chosen_settings(optimizer: Optimizer, config: OptimizationConfig) -> list[dict[str, Any]]:
    # Not lr, which set_learning_rates sets before every step, nor entries such as Prodigy's d, which are state.
    """Of each of a fresh optimizer's groups the settings that a person chooses, apart from what it keeps as state."""
    names = {"weight_decay", *_CHOSEN, *config.optimizer_options}
    return [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]


def points_of(optimizer: Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """Further values that an optimizer keeps of a weight itself: schedule-free ones train at a mean of two points."""
    other = optimizer.state.get(parameter, {}).get("z")
    return [other] if isinstance(other, Tensor) and other.shape == parameter.shape else []


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the weights are those to validate, preview and export; after, those to train on, to the last bit.

    They differ for schedule-free optimizers only, which train at one point and are evaluating at an average. Their own
    switch back rounds, so that a preview would change the run; here the training weights are put back as they were.
    """
    if not _has_modes(optimizer):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)


def _has_modes(optimizer: Optimizer) -> bool:
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def _import_class(name: str, kind: _Kind) -> type[Any]:
    module_name, _, class_name = kind.path.rpartition(".")
    package = module_name.partition(".")[0]
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        if kind.extra:
            raise MissingPackageError(f"optimizer={name}", _PACKAGES.get(package, package), kind.extra) from error
        raise ConfigError("optimization.optimizer", [f"'{name}' can't be imported: {error}"]) from error
    except AttributeError as error:
        raise ConfigError("optimization.optimizer", [f"'{name}' can't be imported: {error}"]) from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ConfigError("optimization.optimizer", [f"'{name}' is no optimizer class (torch.optim.Optimizer)"])
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError("optimization.optimizer", [f"'{name}' needs a closure that computes the loss again"])
    return found


def _as_python(value: Any) -> Any:
    """A value of YAML as optimizers want it: pairs as tuples (betas), and 1e-8, which is a text there, as a number."""
    if isinstance(value, list):
        return tuple(_as_python(one) for one in value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _option_problems(optimizer_class: type[Any], options: Mapping[str, Any]) -> list[str]:
    accepted = inspect.signature(optimizer_class).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    # This package's classes take any keyword and pass over what they don't know: a misspelt one would be lost.
    takes_any = takes_any and not optimizer_class.__module__.startswith("pytorch_optimizer.")
    names = [name for name in accepted if name not in (*_SETTINGS, "kwargs")]
    # A dotted path may name a class that wants a closure; the trainer computes each step's loss only once.
    problems = []
    for name in options:
        if name in _SETTINGS:
            problems.append(f"{name}: set optimization.{_SETTINGS[name]} instead")
        elif name not in accepted and not takes_any:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(names)}"
            problems.append(f"{name}: unknown option of {optimizer_class.__name__}, {hint}")
        elif name in accepted and (
            wanted := _wanted_instead(options[name], accepted[name].default) or _out_of_bounds(name, options[name])
        ):
            problems.append(f"{name}: must be {wanted}, got {options[name]!r}")
    return problems


_ABOVE = {"growth_rate": 1, "d0": 0, "d_coef": 0}
"""Bounds that the classes don't check: at a growth rate of 1 or less the rate they look for would stay or shrink."""


def _out_of_bounds(name: str, value: Any) -> str | None:
    low = _ABOVE.get(name)
    return f"above {low}" if low is not None and isinstance(value, int | float) and not value > low else None


def _wanted_instead(value: Any, default: Any) -> str | None:
    """What an option with such a default must be, where the value is of another kind."""
    if isinstance(default, tuple) and all(isinstance(one, int | float) for one in default):
        numbers = isinstance(value, tuple) and all(isinstance(one, int | float) for one in value)
        if not numbers or len(value) != len(default):
            return f"{len(default)} numbers, such as [{', '.join(map(str, default))}]"
    if isinstance(default, float) and not isinstance(value, int | float | type(None)):
        return "a number"
    if isinstance(default, bool) and not isinstance(value, bool):
        return "true or false"
    return None
