"""An adapter file in the other layout, kohya's or diffusers', without loss.

A number that stands in the file is kept as it stands. Where the other layout scales otherwise, factors are multiplied
by powers of two, which is exact; a scale that needs more than that stays beside the factors: in kohya's layout as the
layer's own alpha, in diffusers' layout in the header entry that diffusers reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import frexp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora.adapters.algebra.derived import Provenance, derived_facts, input_facts, kept_metadata, kept_spec
from sdlora.adapters.algebra.operands import common_family, with_family
from sdlora.adapters.files.container import refuse_target, write_atomically
from sdlora.adapters.files.embedding_writing import bundled_again
from sdlora.adapters.files.key_names import Format
from sdlora.adapters.files.kohya import PARTS, TEXT_MODEL, Part, module_path
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights
from sdlora.adapters.files.writing import (
    Export,
    factor_key,
    network_facts,
    travel_warnings,
    vector_tensors,
    with_hashes,
)
from sdlora.config.base_model import FamilyName, Precision
from sdlora.config.calls import ConvertAdapter
from sdlora.config.files import validate
from sdlora.errors import AdapterError
from sdlora.models.dtypes import DTYPES

_SCALED_FACTOR: dict[str, tuple[str, ...]] = {
    "lora": ("lora_up",),
    "loha": ("hada_w1_a",),
    "lokr": ("lokr_w1", "lokr_w1_a"),
    "glora": (),  # two products: its alpha stays
}


def convert(
    source: Path | str,
    target: Path | str,
    file_format: Format,
    *,
    precision: Precision | None = None,
    family: FamilyName | None = None,
    force: bool = False,
) -> Export:
    """Write an adapter file in kohya's or diffusers' layout; effective weights stay the same bit for bit.

    precision: another number type for the factors (rounds them); by default every tensor keeps its own. family: of
    files that don't tell. Training settings in the metadata are kept.
    For example `convert_adapter("ink.safetensors", "ink-diffusers.safetensors", "diffusers")`.
    Raises AdapterError: the file can't be read, `target` exists and not `force`, diffusers' layout can't hold it;
    ConfigError listing every problem of what is asked for.
    """
    given = {"source": source, "target": target, "file_format": file_format, "precision": precision}
    asked = validate({**given, "family": family, "force": force}, "convert_adapter", ConvertAdapter)
    target, file_format, precision = asked.target, asked.file_format, asked.precision
    family, force = asked.family, asked.force
    refuse_target(target, force)
    file = read(asked.source, family)
    file = with_family(file, common_family([file], family))
    modules = {name: _cast(weights, precision) for name, weights in file.modules.items()}
    facts = derived_facts(target, [file], common_family([file]))
    provenance = Provenance("convert", [input_facts(file)], {"format": file_format, "precision": precision or "kept"})
    if file_format == "kohya":
        tensors, alpha = _kohya(modules)
        tensors |= vector_tensors(file.vectors, facts.family, None if precision is None else DTYPES[precision])
        for embedding in file.embeddings.values():
            tensors |= bundled_again(embedding)
        more: dict[str, str] = {}
    else:
        _refuse_vectors(file)
        tensors, more = _diffusers(modules, facts.family)
        alpha = float(next(iter(modules.values())).rank)
    entries = kept_metadata(file, facts, network_facts(modules, alpha))
    data, model_hash = with_hashes(tensors, facts, entries, {**kept_spec(file), **provenance.entries(), **more})
    refuse_target(target, force)  # another process may have made it meanwhile
    write_atomically(target, data)
    return Export(target, len(data), model_hash, _warnings(file, modules, tensors, file_format, bool(more)))


def _kohya(modules: Mapping[str, ModuleWeights]) -> tuple[dict[str, Tensor], float]:
    # One alpha for all where that is exact: with several, diffusers scales attention layers wrongly.
    scaled = [weights for weights in modules.values() if weights.has_scale] or list(modules.values())
    common = Counter(_alpha(weights) for weights in scaled).most_common(1)[0][0] if scaled else 1.0
    tensors: dict[str, Tensor] = {}
    for name, weights in modules.items():
        factors, alpha = _with_alpha(weights, common), common
        if factors is None or weights.algorithm == "oft":  # whose alpha is no scale
            factors, alpha = weights.factors, _alpha(weights)
        tensors |= {f"{name}.{factor_key(factor)}": tensor.contiguous() for factor, tensor in factors.items()}
        if weights.has_scale or weights.is_full_lokr or (weights.algorithm == "oft" and weights.alpha is not None):
            tensors[f"{name}.alpha"] = _exact_alpha(alpha, next(iter(factors.values())).dtype)
        if weights.dora_scale is not None:
            tensors[f"{name}.dora_scale"] = weights.dora_scale.contiguous()
    return tensors, common


def _refuse_vectors(file: AdapterFile) -> None:
    if file.vectors:
        raise AdapterError(
            f"diffusers' layout can't hold updates of biases and norms, which {len(file.vectors)} layers have, such as "
            f"{next(iter(file.vectors))}; kohya's can"
        )


def _diffusers(modules: Mapping[str, ModuleWeights], family: FamilyName) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, and the header entry with every layer's alpha if some layer can't do without one."""
    places: dict[str, tuple[Part, str]] = {}
    problems = []
    for name, weights in modules.items():
        place = module_path(name, family)
        if weights.algorithm != "lora":
            problems.append(f"{name} is {weights.algorithm}, which diffusers can't read; sdlora mix makes it LoRA")
        elif "lora_mid" in weights.factors:
            problems.append(f"{name} is a Tucker convolution, which diffusers can't read; sdlora mix makes it plain")
        elif weights.dora_scale is not None and weights.dora_scale.shape[0] != weights.factors["lora_up"].shape[0]:
            problems.append(f"{name} has a DoRA magnitude for each input, which diffusers can't read")
        elif place is None:
            problems.append(f"{name} is no layer of a {family} model")
        else:
            places[name] = place
    if problems:
        raise AdapterError(f"diffusers' layout can't hold {len(problems)} of {len(modules)} layers: {problems[0]}")
    folded = {name: _with_alpha(weights, float(weights.rank)) for name, weights in modules.items()}
    # Without the entry, as long as folding is exact: older versions of diffusers don't read it.
    if not any(factors is None for factors in folded.values()):
        declared: dict[str, str] = {}
    else:
        folded = {name: weights.factors for name, weights in modules.items()}
        declared = {"lora_adapter_metadata": json.dumps(_declared(modules, places), sort_keys=True)}
    tensors: dict[str, Tensor] = {}
    for name, factors in folded.items():
        assert factors is not None
        part, path = places[name]
        tensors[f"{part}.{path}.lora_A.weight"] = factors["lora_down"].contiguous()
        tensors[f"{part}.{path}.lora_B.weight"] = factors["lora_up"].contiguous()
        magnitude = modules[name].dora_scale
        if magnitude is not None:
            shape = (1, -1, 1, 1) if magnitude.ndim == 4 else (-1,)
            tensors[f"{part}.{path}.lora_magnitude_vector"] = magnitude.reshape(shape).contiguous()
    return tensors, declared


def _declared(modules: Mapping[str, ModuleWeights], places: Mapping[str, tuple[Part, str]]) -> dict[str, Any]:
    """PEFT's settings by part, as diffusers packs them. Without `text_model.`, which PEFT's patterns may lack."""
    declared: dict[str, Any] = {}
    for part in PARTS:
        own = {places[name][1].removeprefix(TEXT_MODEL): w for name, w in modules.items() if places[name][0] == part}
        if not own:
            continue
        rank = Counter(weights.rank for weights in own.values()).most_common(1)[0][0]
        alpha = Counter(_alpha(weights) for weights in own.values()).most_common(1)[0][0]
        settings = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {path: weights.rank for path, weights in own.items() if weights.rank != rank},
            "alpha_pattern": {path: _alpha(weights) for path, weights in own.items() if _alpha(weights) != alpha},
            "target_modules": list(own),
            "use_dora": any(weights.dora_scale is not None for weights in own.values()),
        }
        declared |= {f"{part}.{key}": value for key, value in settings.items()}
    return declared


def _alpha(weights: ModuleWeights) -> float:
    return float(weights.rank) if weights.alpha is None else weights.alpha


def _with_alpha(weights: ModuleWeights, alpha: float) -> Mapping[str, Tensor] | None:
    """The factors that go with another alpha, if they can be had exactly: by a power of two and without underflow."""
    ratio = _alpha(weights) / alpha if alpha else 0.0
    if ratio == 1.0 or not weights.has_scale:
        return weights.factors
    # Only a power of two scales a floating-point number without rounding it.
    if abs(frexp(ratio)[0]) != 0.5:
        return None
    name = next((name for name in _SCALED_FACTOR[weights.algorithm] if name in weights.factors), None)
    if name is None:
        return None
    factor = weights.factors[name]
    scaled = (factor.double() * ratio).to(factor.dtype)
    return {**weights.factors, name: scaled} if torch.equal(scaled.double(), factor.double() * ratio) else None


def _exact_alpha(alpha: float, dtype: torch.dtype) -> Tensor:
    # The factors' own type if it holds the number exactly, else one that does: a rounded alpha is another scale.
    for kind in (dtype, torch.float32):
        if float(torch.tensor(alpha, dtype=kind)) == alpha:
            return torch.tensor(alpha, dtype=kind)
    return torch.tensor(alpha, dtype=torch.float64)


def _cast(weights: ModuleWeights, precision: Precision | None) -> ModuleWeights:
    if precision is None:
        return weights
    dtype = DTYPES[precision]
    factors = {name: tensor.to(dtype) for name, tensor in weights.factors.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in factors.values()):
        raise AdapterError(f"a value is too large for {precision}; take bf16, or keep the file's own number type")
    magnitude = None if weights.dora_scale is None else weights.dora_scale.to(dtype)
    return replace(weights, factors=factors, dora_scale=magnitude)


def _warnings(
    file: AdapterFile,
    modules: Mapping[str, ModuleWeights],
    tensors: Mapping[str, Tensor],
    file_format: Format,
    declares: bool,
) -> tuple[str, ...]:
    warnings = [*travel_warnings(modules, tensors, file_format)]
    warnings += file.notes
    if unused := file.unused_note():
        warnings.append(f"{unused}; the new file lacks them")
    if file_format == "diffusers" and (bundle := file.bundle_note()):
        warnings.append(bundle)
    if declares:
        warnings.append("the scales stand in the header, which diffusers reads from 0.35 on; older ones ignore it")
    alphas = {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")}
    if len(alphas) > 1:
        warnings.append(
            f"{len(alphas)} different alphas are kept, as no power of two lies between them: diffusers 0.35 and later "
            "scale such attention layers wrongly"
        )
    return tuple(warnings)
