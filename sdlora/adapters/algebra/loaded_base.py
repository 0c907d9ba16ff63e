"""A base model in memory with its configuration's adapters merged into it, for training and for generating."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sdlora.adapters.algebra.operands import Operand, layer_update, load_operands, notes_of, told
from sdlora.adapters.files.kohya import PARTS, kohya_name
from sdlora.adapters.files.metadata import prediction_note
from sdlora.adapters.files.weights import AdapterFile
from sdlora.config.base_model import BaseModelConfig, FamilyName
from sdlora.config.given import Values, base_model_config
from sdlora.config.mix import MixedAdapter
from sdlora.errors import AdapterError, ConfigError
from sdlora.models.bundle import Bundle
from sdlora.models.loading import load

Layer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
"""What adapters change."""


def load_base(
    config: BaseModelConfig | Values | Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Bundle:
    """The base model as `models.loading.load` gives it, `config.adapters` merged into its weights.

    config: also the model's name, folder or file alone, as in `load_model("builtin:emoji")`.
    Raises AdapterError when one can't be read, is of another family or doesn't fit, beside what `load` raises.
    """
    config = base_model_config(config)
    _refuse_device(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ConfigError("load_model", [f"dtype: must be one of torch, such as torch.float16; got {dtype!r}"])
    if not config.adapters:
        return load(config, device=device, dtype=dtype)
    merged: list[AdapterFile] = []
    bundle = load(config, device=device, dtype=dtype, change=partial(_merge, config, merged))
    # What the model predicts is known only now.
    notes = (
        prediction_note(file.path.name, file.metadata, config.model, bundle.schedule.prediction) for file in merged
    )
    bundle.notes.extend(note for note in notes if note)
    return bundle


def _refuse_device(device: torch.device | str) -> None:
    """Raise ConfigError for a device that isn't there: torch tells that in errors of many kinds."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError("load_model", [f"device: {device!r} can't be used here: {reason}"]) from None


def read_base_adapters(config: BaseModelConfig, family: FamilyName) -> list[Operand]:
    """The adapters to merge, read and weighted. Raises AdapterError as `load_base` does."""
    wanted = [MixedAdapter(file=adapter.file, weight=adapter.weight) for adapter in config.adapters]
    return load_operands(wanted, family, "base_model.model") if wanted else []


def base_adapter_notes(config: BaseModelConfig, family: FamilyName, models: Sequence[nn.Module]) -> list[str]:
    """What loading the base says of its adapters, by the shapes of UNet and text encoders alone (torch's meta device).

    Raises AdapterError as `load_base` does.
    """
    return _fitted(config, read_base_adapters(config, family), _layers(family, models))


@torch.no_grad()
def _merge(
    config: BaseModelConfig, merged: list[AdapterFile], family: FamilyName, models: Sequence[nn.Module]
) -> list[str]:
    layers = _layers(family, models)
    operands = read_base_adapters(config, family)
    notes = _fitted(config, operands, layers)
    originals = _originals(operands, layers)
    for operand in operands:
        for name in (name for name in operand.file.layer_names if name in layers):
            if name in operand.file.modules:
                _add(operand, name, layers[name].weight, originals.get(name))
            if name in operand.file.vectors:
                _add_vectors(operand, name, layers[name])
        merged.append(replace(operand.file, modules={}, vectors={}))  # without the tensors
    return notes


def _layers(family: FamilyName, models: Sequence[nn.Module]) -> dict[str, Layer]:
    """What adapters may change, by kohya name."""
    return {
        kohya_name(part, path, family): layer
        # SD 1.x and 2.x have fewer parts than there are names for.
        for part, model in zip(PARTS, models, strict=False)
        for path, layer in model.named_modules()
        if isinstance(layer, Layer)
    }


def _fitted(config: BaseModelConfig, operands: Sequence[Operand], layers: Mapping[str, Layer]) -> list[str]:
    """What is to be said of adapters that fit. Raises AdapterError with what is wrong with any of the others."""
    notes: list[str] = []
    problems: list[str] = []
    for operand in operands:
        file = operand.file
        placed = [name for name in file.layer_names if name in layers]
        if not placed:
            problems.append(f"no layer of {file.path.name} stands in {config.model}")
        problems += [f"{file.path.name} doesn't fit the model: {what}" for what in _misfits(file, layers)]
        missing = len(file.layer_names) - len(placed)
        ending = f"; {missing} of its layers are not in this model" if missing else ""
        notes.append(f"merged {file.path.name} at weight {operand.unet:g} into {len(placed)} layers{ending}")
        notes += notes_of([file])
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise AdapterError(f"base_model.adapters: {'; '.join(problems[:3])}{more}")
    return notes


def _misfits(file: AdapterFile, layers: Mapping[str, Layer]) -> Iterator[str]:
    for name, weights in file.modules.items():
        if name in layers and not weights.fits(layers[name].weight.shape):
            yield f"{name} is {told(weights)}, the model has {list(layers[name].weight.shape)}"
    for name, vector in file.vectors.items():
        for kind, own in (("weight", vector.weight), ("bias", vector.bias)):
            outputs = len(layers[name].weight) if name in layers else 0
            if own is not None and outputs and len(own) != outputs:
                yield f"{name}'s {kind} has {len(own)} values, the model's {outputs}"


def _originals(operands: Sequence[Operand], layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Copies of the weights that a later update depends on, before an earlier adapter changes them."""
    later = [name for operand in operands[1:] for name, own in operand.file.modules.items() if own.needs_base]
    kept = {name: layers[name].weight for name in dict.fromkeys(later) if name in layers}
    return {name: weight.detach().clone() for name, weight in kept.items() if isinstance(weight, Tensor)}


def _add(operand: Operand, name: str, weight: Tensor, original: Tensor | None) -> None:
    """Add one layer's update to its weight, in place; summed in float64, as half precision would round it away.

    original: the base's own weight, when other adapters have changed it already.
    """
    base = weight if original is None else original
    weights = operand.file.modules[name]
    update = layer_update(name, weights, lambda _: base, operand.file.path.name).times(operand.weight_of(name))
    weight.copy_((weight.double().flatten(1) + update.matrix().to(weight.device)).reshape(weight.shape))
    _refuse_beyond(weight, operand, name)


def _add_vectors(operand: Operand, name: str, layer: Layer) -> None:
    """Add updates of a layer's norm weight and bias, in place; a bias that it has not is made."""
    vector = operand.file.vectors[name].times(operand.weight_of(name))
    for kind, own in (("weight", vector.weight), ("bias", vector.bias)):
        if own is None:
            continue
        target = getattr(layer, kind)
        if target is None:
            # Stable Diffusion's projections of attention have none: it begins at 0.
            target = nn.Parameter(layer.weight.new_zeros(len(own)), requires_grad=False)
            layer.register_parameter(kind, target)
        target.copy_(target.double() + own.to(target.device))
        _refuse_beyond(target, operand, name)


def _refuse_beyond(tensor: Tensor, operand: Operand, name: str) -> None:
    """Raise AdapterError where a weight is now beyond what its number type can hold: pictures would be black."""
    if not bool(torch.isfinite(tensor).all()):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise AdapterError(
            f"base_model.adapters: with {operand.file.path.name} {name} would hold values that {kind} can't; lower its "
            "weight"
        )
