"""A base model in memory with its configuration's adapters merged into it, for training and for generating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from sdlora.errors import AdapterError
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


def read_base_adapters(config: BaseModelConfig, family: FamilyName) -> list[Operand]:
    """The adapters to merge, read and weighted. Raises AdapterError as `load_base` does."""
    wanted = [MixedAdapter(file=adapter.file, weight=adapter.weight) for adapter in config.adapters]
    return load_operands(wanted, family, "base_model.model") if wanted else []


@torch.no_grad()
def _merge(
    config: BaseModelConfig, merged: list[AdapterFile], family: FamilyName, models: Sequence[nn.Module]
) -> list[str]:
    layers = {
        kohya_name(part, path, family): layer
        # SD 1.x and 2.x have fewer parts than there are names for.
        for part, model in zip(PARTS, models, strict=False)
        for path, layer in model.named_modules()
        if isinstance(layer, Layer)
    }
    notes = []
    operands = read_base_adapters(config, family)
    originals = _originals(operands, layers)
    for operand in operands:
        placed = [name for name in operand.file.layer_names if name in layers]
        if not placed:
            raise AdapterError(f"base_model.adapters: no layer of {operand.file.path.name} stands in {config.model}")
        for name in placed:
            if name in operand.file.modules:
                _add(operand, name, layers[name].weight, originals.get(name))
            if name in operand.file.vectors:
                _add_vectors(operand, name, layers[name])
        missing = len(operand.file.layer_names) - len(placed)
        ending = f"; {missing} of its layers are not in this model" if missing else ""
        notes.append(f"merged {operand.file.path.name} at weight {operand.unet:g} into {len(placed)} layers{ending}")
        notes += notes_of([operand.file])
        merged.append(replace(operand.file, modules={}, vectors={}))  # without the tensors
    return notes


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
    if not weights.fits(weight.shape):
        raise AdapterError(
            f"base_model.adapters: {operand.file.path.name} doesn't fit the model: {name} is {told(weights)}, the "
            f"model has {list(weight.shape)}"
        )
    update = layer_update(name, weights, lambda _: base, operand.file.path.name).times(operand.weight_of(name))
    weight.copy_((weight.double().flatten(1) + update.matrix().to(weight.device)).reshape(weight.shape))
    _refuse_beyond(weight, operand, name)


def _add_vectors(operand: Operand, name: str, layer: Layer) -> None:
    """Add updates of a layer's norm weight and bias, in place."""
    vector = operand.file.vectors[name].times(operand.weight_of(name))
    for kind, own in (("weight", vector.weight), ("bias", vector.bias)):
        if own is None:
            continue
        target = getattr(layer, kind)
        if target is None and len(own) == len(layer.weight):
            # Stable Diffusion's projections of attention have none: it begins at 0.
            target = nn.Parameter(layer.weight.new_zeros(len(own)), requires_grad=False)
            layer.register_parameter(kind, target)
        if target is None or target.shape != own.shape:
            has = len(layer.weight) if target is None else len(target)
            raise AdapterError(
                f"base_model.adapters: {operand.file.path.name} doesn't fit the model: {name}'s {kind} has {len(own)} "
                f"values, the model's {has}"
            )
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
