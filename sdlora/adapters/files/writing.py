"""Writes adapter files that other tools read: kohya's layout, or diffusers/PEFT's on request.

Conventions kept, as some real loader fails without each: names and SDXL spelling as in `kohya`; `.alpha` always,
one value for the whole file and exact in the file's number type, every other scale being folded into lora_up;
convolutions [r,in,k,k] and [out,r,1,1]; nothing that is not finite.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sdlora.adapters.files.container import legacy_hash, serialise, tensor_hash, write_atomically
from sdlora.adapters.files.embeddings import is_bundled
from sdlora.adapters.files.key_names import GLORA_FACTORS, LORA_FACTORS, Format
from sdlora.adapters.files.kohya import TEXT_MODEL, Part, kohya_name
from sdlora.adapters.files.layer_table import is_norm
from sdlora.adapters.files.metadata import (
    NetworkFacts,
    TrainingFacts,
    kohya_metadata,
    model_spec,
    own_metadata,
    side_car,
    site_side_car,
)
from sdlora.adapters.files.weights import ModuleWeights, VectorUpdate
from sdlora.config.base_model import FamilyName, Precision
from sdlora.errors import AdapterError
from sdlora.models.dtypes import DTYPES
from sdlora.models.headers import read_header
from sdlora.models.identity import sha256_of

Modules = Mapping[tuple[Part, str], ModuleWeights]


# One factor alone takes the ratio, so that the others stay bit for bit what was trained.
_FOLDED_INTO = {"lora": ("lora_up",), "loha": ("hada_w1_a",), "lokr": ("lokr_w1", "lokr_w1_a")}


@dataclass(frozen=True)
class Export:
    """A written file. `model_hash` is its sshs_model_hash; its first 12 letters are the AutoV3 hash of model sites."""

    path: Path
    size_bytes: int
    model_hash: str
    warnings: tuple[str, ...]


def write_adapter(
    path: Path,
    modules: Modules,
    facts: TrainingFacts,
    *,
    file_format: Format = "kohya",
    precision: Precision = "fp16",
    private: bool = False,
    bundle: Mapping[str, Tensor] | None = None,
) -> Export:
    """Write a trained adapter (`Adapter.module_weights()`) to one .safetensors file, whole or not at all.

    private leaves folder names and captions out of the metadata. bundle: tensors that are put in as they are, those of
    embeddings. The warnings say where the file will not travel.
    Raises AdapterError: a value is not finite or too large for fp16, the format can't hold the algorithm, the disk.
    """
    _refuse_nonfinite(modules)
    dtype = DTYPES[precision]
    if file_format == "kohya":
        tensors, network = kohya_tensors(modules, facts.family, dtype)
    else:
        tensors, network = diffusers_tensors(modules, dtype)
    tensors |= bundle or {}
    data, model_hash = with_hashes(tensors, facts, kohya_metadata(facts, network, private=private), own_metadata(facts))
    write_atomically(path, data)
    return Export(path, len(data), model_hash, travel_warnings(modules, tensors, file_format))


def write_side_car(
    path: Path,
    facts: TrainingFacts,
    preview: Path | None = None,
    kind: Literal["LORA", "TextualInversion"] = "LORA",
) -> list[Path]:
    """Write what other tools read beside a file that was written.

    `<name>.json` with the trigger words as "activation text", `<name>.civitai.info` with them and the file's hashes,
    and `<name>.png`, a copy of `preview`.
    """
    model_hash = read_header(path).metadata.get("sshs_model_hash", "")
    for_sites = site_side_car(facts, path.name, path.stat().st_size, sha256_of(path), model_hash, kind)
    written = []
    for suffix, content in ((".json", side_car(facts)), (".civitai.info", for_sites)):
        written.append(path.with_suffix(suffix))
        write_atomically(written[-1], (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    if preview is not None:
        written.append(path.with_suffix(".png"))
        write_atomically(written[-1], preview.read_bytes())
    return written


def kohya_tensors(modules: Modules, family: FamilyName, dtype: torch.dtype) -> tuple[dict[str, Tensor], NetworkFacts]:
    """All tensors in kohya's layout, and what the metadata says of them. Raises AdapterError on fp16 overflow."""
    return named_tensors({kohya_name(part, path, family): weights for (part, path), weights in modules.items()}, dtype)


def named_tensors(modules: Mapping[str, ModuleWeights], dtype: torch.dtype) -> tuple[dict[str, Tensor], NetworkFacts]:
    """The same for modules that have their kohya names already."""
    # One alpha for the whole file, that of most layers, rounded to what the file's number type holds exactly.
    alpha = _most_common([w.scale * w.rank for w in modules.values() if not w.is_full_lokr] or [1.0])
    alpha = float(torch.tensor(alpha, dtype=dtype))
    if not 0.0 < alpha < float("inf"):
        alpha = 1.0
    tensors: dict[str, Tensor] = {}
    for name, weights in modules.items():
        for factor, tensor in _folded(weights, alpha).items():
            tensors[f"{name}.{factor_key(factor)}"] = _cast(tensor, dtype, name)
        # Always written: loaders take a missing alpha for the rank or for 1, each its own way.
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
        if weights.dora_scale is not None:
            tensors[f"{name}.dora_scale"] = _cast(weights.dora_scale, dtype, name)
    return tensors, network_facts(modules, alpha)


def diffusers_tensors(modules: Modules, dtype: torch.dtype) -> tuple[dict[str, Tensor], NetworkFacts]:
    """All tensors in diffusers/PEFT's layout, scaled so that alpha equals rank everywhere: no alphas are needed.

    Then `load_lora_weights` applies B @ A as it stands, with mixed ranks too. Raises AdapterError for LoHa and LoKr.
    """
    other = {weights.algorithm for weights in modules.values()} - {"lora"}
    if other:
        raise AdapterError(
            f"the diffusers format holds LoRA only, not {', '.join(sorted(other))}; use outputs.format: kohya"
        )
    tensors: dict[str, Tensor] = {}
    for (part, path), weights in modules.items():
        level = "" if part == "unet" else TEXT_MODEL
        name = f"{part}.{level}{path.removeprefix(level)}"
        folded = _folded(weights.without_tucker(), float(weights.rank))
        tensors[f"{name}.lora_A.weight"] = _cast(folded["lora_down"], dtype, path)
        tensors[f"{name}.lora_B.weight"] = _cast(folded["lora_up"], dtype, path)
        if weights.dora_scale is not None:
            is_conv = weights.dora_scale.ndim == 4
            magnitude = weights.dora_scale.reshape((1, -1, 1, 1) if is_conv else (-1,))
            tensors[f"{name}.lora_magnitude_vector"] = _cast(magnitude, dtype, path)
    rank = _most_common([weights.rank for weights in modules.values()])
    return tensors, network_facts(modules, float(rank))


def factor_key(factor: str) -> str:
    """What a factor is called in kohya's layout, behind the layer's name."""
    if factor in (*LORA_FACTORS, *GLORA_FACTORS, "oft_R"):
        return f"{factor}.weight"
    return "weight" if factor == "ia3" else factor


def vector_tensors(
    vectors: Mapping[str, VectorUpdate], family: FamilyName | None, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Updates of biases and norms in kohya's layout, as LyCORIS and ComfyUI read them. dtype: by default their own."""
    tensors: dict[str, Tensor] = {}
    for name, vector in vectors.items():
        for kind, tensor in (("w_norm", vector.weight), ("b_norm" if is_norm(name, family) else "diff_b", vector.bias)):
            if tensor is not None:
                tensors[f"{name}.{kind}"] = tensor.contiguous() if dtype is None else _cast(tensor, dtype, name)
    return tensors


def _folded(weights: ModuleWeights, alpha: float) -> dict[str, Tensor]:
    """The factors as they must be for `alpha` to stand in the file; untouched when it is theirs already."""
    factors = dict(weights.factors)
    ratio = weights.scale if weights.is_full_lokr else weights.scale * weights.rank / alpha
    if ratio != 1.0:
        name = next(name for name in _FOLDED_INTO[weights.algorithm] if name in factors)
        factors[name] = factors[name].float() * ratio
    return factors


def _most_common(values: Sequence[float]) -> float:
    return Counter(values).most_common(1)[0][0]


def _cast(tensor: Tensor, dtype: torch.dtype, path: str) -> Tensor:
    # Through float32, as 8-bit floats have no maximum.
    largest = float(tensor.float().abs().max()) if tensor.numel() else 0.0
    if largest > torch.finfo(dtype).max:
        raise AdapterError(
            f"{path} holds the value {largest:.3g}, beyond what {str(dtype).removeprefix('torch.')} can hold "
            f"({torch.finfo(dtype).max:.3g}); write bf16 (outputs.precision=bf16, or --precision bf16), and take a "
            "lower learning rate or weight"
        )
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _refuse_nonfinite(modules: Modules) -> None:
    broken = [
        path
        for (_, path), weights in modules.items()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in _all_tensors(weights))
    ]
    if broken:
        raise AdapterError(
            f"{len(broken)} of {len(modules)} layers hold NaN or infinite weights (first: {broken[0]}), so no file is "
            "written; go back to an earlier checkpoint and lower the learning rate"
        )


def _all_tensors(weights: ModuleWeights) -> list[Tensor]:
    magnitude = [] if weights.dora_scale is None else [weights.dora_scale]
    return [*weights.factors.values(), *magnitude]


def network_facts(modules: Mapping[Any, ModuleWeights], alpha: float) -> NetworkFacts:
    """What the metadata says of these layers, whatever they are called."""
    first = next(iter(modules.values()), None)
    if first is None:
        return NetworkFacts("lycoris.kohya", 0, alpha, {"algo": "full"})
    kernels = {key: weights for key, weights in modules.items() if _is_convolution(weights)}
    plain = [weights.rank for key, weights in modules.items() if key not in kernels]
    arguments: dict[str, str] = {}
    if kernels:
        arguments["conv_dim"] = str(_most_common([weights.rank for weights in kernels.values()]))
        arguments["conv_alpha"] = str(alpha)
    is_dora = first.dora_scale is not None
    if first.algorithm != "lora" or is_dora:
        arguments = {"algo": first.algorithm, **arguments}
    if is_dora:
        arguments |= {"dora_wd": "True", "wd_on_output": "True"}
    module = "lycoris.kohya" if "algo" in arguments else "networks.lora"
    return NetworkFacts(module, int(_most_common(plain or [first.rank])), alpha, arguments)


def _is_convolution(weights: ModuleWeights) -> bool:
    shape = weights.delta_shape
    return shape is not None and len(shape) == 4 and shape[2:] != (1, 1)


def with_hashes(
    tensors: Mapping[str, Tensor],
    facts: TrainingFacts,
    entries: Mapping[str, str],
    more: Mapping[str, str] | None = None,
) -> tuple[bytes, str]:
    """A file of these tensors with ss_* `entries`, ModelSpec and `more`, and its hash.

    kohya's hashes are of the file with the ss_* entries only, so that one is made first.
    """
    # kohya hashes the file without what other tools add to it, and no file can hold its own hash.
    bare = serialise(tensors, entries)
    model_hash = tensor_hash(bare)
    hashes = {"sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash(bare)}
    return serialise(tensors, {**entries, **model_spec(facts, model_hash), **(more or {}), **hashes}), model_hash


def travel_warnings(
    modules: Mapping[Any, ModuleWeights], tensors: Mapping[str, Tensor], file_format: Format
) -> tuple[str, ...]:
    """Where a file of these tensors will not be read as it should."""
    warnings: list[str] = []
    algorithms = sorted({weights.algorithm for weights in modules.values()} - {"lora"})
    if any(weights.rank == 1 and weights.algorithm == "lora" for weights in modules.values()):
        warnings.append("rank 1: stable-diffusion.cpp scales such layers wrongly; rank 2 or more travels better")
    if any(weights.dora_scale is not None for weights in modules.values()):
        warnings.append(
            "DoRA does not travel: only LyCORIS applies it rightly; diffusers and kohya ignore its magnitude, "
            "ComfyUI, A1111 and InvokeAI take its norm over the wrong axis"
        )
    if algorithms:
        listed = " and ".join(algorithms)
        warnings.append(f"diffusers and kohya's own loader can't read {listed}; ComfyUI, A1111 and LyCORIS can")
    if any(name.endswith((".diff_b", ".w_norm", ".b_norm")) for name in tensors):
        warnings.append("biases and norms are read by ComfyUI and LyCORIS; kohya's own loader and diffusers skip them")
    if any(is_bundled(name) for name in tensors):
        warnings.append("diffusers refuses a file with bundled embeddings; AUTOMATIC1111 and sdlora use them")
    if file_format == "diffusers":
        warnings.append("the diffusers format is read whole by diffusers only; other tools want the kohya format")
    empty = [name for name, tensor in tensors.items() if tensor.ndim > 0 and not bool(tensor.any())]
    if empty:
        warnings.append(
            f"{len(empty)} tensors are all zero (first: {empty[0]}): those layers have learned nothing and have no "
            "effect. A learning rate of 0 does that, a mask that leaves nothing to learn, or images so small that "
            "attention sees one position only, where it is as it should be"
        )
    return tuple(warnings)
