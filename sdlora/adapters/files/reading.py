"""Reads adapter files of any common layout into `AdapterFile`: kohya, diffusers/PEFT, old attention processors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora.adapters.files.container import load_tensors
from sdlora.adapters.files.family_guess import guess_family
from sdlora.adapters.files.hub_files import local_file
from sdlora.adapters.files.key_names import LOHA_FACTORS, LOKR_FACTORS, LORA_FACTORS, algorithm_of, by_layer
from sdlora.adapters.files.kohya import canonical
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights
from sdlora.config.adapter import Algorithm
from sdlora.errors import AdapterError
from sdlora.models.headers import file_tensor_hash

_NEEDED: dict[Algorithm, tuple[tuple[str, ...], ...]] = {
    "lora": (("lora_down", "lora_up"),),
    "loha": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
    "lokr": tuple(
        (*first, *second)
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
}


def read(path: Path | str) -> AdapterFile:
    """All that an adapter file holds, with names made uniform. Every tensor is used, or named in `unused`.

    path: a file, or hf://owner/name[/file] on the hub.

    Raises AdapterError, listing what is wrong: not safetensors, damaged, no adapter in it, factors missing or of
    shapes that don't fit each other, non-finite values.
    """
    path = local_file(path)
    tensors, metadata = load_tensors(path)
    keys = by_layer(tensors)
    is_kohya, unused = keys.file_format == "kohya", keys.unused
    grouped = {
        name: {factor: _as_stored(key, tensors[key]) for factor, key in given.items()}
        for name, given in keys.layers.items()
    }
    problems = [
        f"{key} has a value that is not finite"
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all()
    ]
    modules: dict[str, ModuleWeights] = {}
    # The family first: it decides which of two spellings the layers' names are turned into.
    family = guess_family(grouped, metadata)
    declared = _declared_alphas(metadata)
    for name, given in grouped.items():
        try:
            weights = _module_weights(given)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        own_name = canonical(name, family)
        if own_name in modules:
            problems.append(f"{name} and another key both mean {own_name}")
        modules[own_name] = weights if is_kohya else _with_declared_alpha(name, weights, declared)
    if problems:
        listed = "\n  ".join(problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else []))
        raise AdapterError(f"{path.name} can't be used:\n  {listed}")
    if not modules:
        first = next(iter(tensors), "nothing at all")
        raise AdapterError(f"{path.name} holds no LoRA, LoHa or LoKr layer that is understood (it holds {first}, ...)")
    model_hash = file_tensor_hash(path)
    notes: list[str] = []
    without = sum(weights.alpha is None for weights in modules.values())
    if is_kohya and without:
        notes.append(f"{without} of {len(modules)} layers have no alpha: their scale is taken as 1")
    zero = sum(weights.alpha == 0 for weights in modules.values())
    if zero:
        notes.append(f"{zero} of {len(modules)} layers have alpha 0: no effect here, but full effect in kohya's tools")
    if metadata.get("sshs_model_hash", model_hash) != model_hash:
        notes.append("its tensors are not those that its own hash was taken of: changed by another tool, or damaged")
    return AdapterFile(path, keys.file_format, family, modules, metadata, model_hash, tuple(unused), tuple(notes))


def _as_stored(key: str, tensor: Tensor) -> Tensor:
    """The tensor; PEFT's magnitude [out] or [1,out,1,1] in the shape of kohya's files, [out,1(,1,1)]."""
    if "lora_magnitude_vector" not in key:
        return tensor
    dimensions = 4 if tensor.ndim == 4 else 2
    return tensor.reshape(-1, *[1] * (dimensions - 1))


def _module_weights(given: Mapping[str, Tensor]) -> ModuleWeights:
    """One layer's weights. Raises ValueError saying what is wrong."""
    factors = {name: tensor for name, tensor in given.items() if name not in ("alpha", "dora_scale")}
    algorithm = algorithm_of(factors)
    allowed = {"lora": LORA_FACTORS, "loha": LOHA_FACTORS, "lokr": LOKR_FACTORS}[algorithm]
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in factors.items())
    if not set(factors) <= set(allowed) or not any(set(needed) <= set(factors) for needed in _NEEDED[algorithm]):
        raise ValueError(f"these factors make no {algorithm} layer: {shapes}")
    if not all(tensor.is_floating_point() for tensor in given.values()):
        raise ValueError(f"holds whole numbers where factors should be: {shapes}")
    alpha = given.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"alpha has {alpha.numel()} values, not one")
    weights = ModuleWeights(
        algorithm, factors, None if alpha is None else float(alpha.float()), given.get("dora_scale")
    )
    try:
        fits = weights.delta_shape.numel() > 0 and weights.rank > 0
    except (RuntimeError, IndexError, ValueError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f"the shapes don't fit each other: {shapes}")
    return weights


def _declared_alphas(metadata: Mapping[str, str]) -> dict[str, Any]:
    """diffusers' own header entry: PEFT settings by part, such as unet.lora_alpha and unet.alpha_pattern."""
    try:
        declared = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    return declared if isinstance(declared, dict) else {}


def _with_declared_alpha(name: str, weights: ModuleWeights, declared: Mapping[str, Any]) -> ModuleWeights:
    part = {"unet": "unet", "te": "text_encoder", "te2": "text_encoder_2"}[name.split("_")[1]]
    settings = {key.removeprefix(f"{part}."): value for key, value in declared.items() if key.startswith(f"{part}.")}
    alpha = settings.get("lora_alpha", settings.get("alpha"))
    patterns = settings.get("alpha_pattern") or {}
    if isinstance(patterns, dict):
        for pattern, value in patterns.items():
            if f"{name}$".endswith(f"_{pattern.lstrip('^').replace('.', '_')}$"):
                alpha = value
    if weights.alpha is not None or not isinstance(alpha, (int, float)):
        return weights
    if settings.get("use_rslora"):
        alpha *= sqrt(weights.rank)
    return ModuleWeights(weights.algorithm, weights.factors, float(alpha), weights.dora_scale)
